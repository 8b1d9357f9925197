"""The LLMService manifest: models, reading, and what is not built yet."""

from penstock_operator.api.llmservice import LLMService, Spec
from penstock_operator.api.load import ManifestError, default_text, load
from penstock_operator.api.unsupported import Refusal, unsupported, without_effect

__all__ = ["LLMService", "ManifestError", "Refusal", "Spec", "default_text", "load", "unsupported", "without_effect"]
