"""Text to tokens: chat templates, exact prefix-reusing tokenization, block keys, the model's defaults.

Promise: what workers get is what vLLM's own server would have made of the same request.
"""

from .chunks import Encoded, Pending
from .errors import ModelFilesError, TemplateRefused, TextRefused
from .model import TextModel

__all__ = ["Encoded", "ModelFilesError", "Pending", "TemplateRefused", "TextModel", "TextRefused"]
