"""The LLMService manifest: models, reading, and what is not built yet."""

from penstock_operator.api.check import Fault, check, judge
from penstock_operator.api.llmservice import LLMService, Spec
from penstock_operator.api.load import ManifestError, default_text, load
from penstock_operator.api.unsupported import Refusal, unsupported, without_effect

__all__ = [
    "Fault",
    "LLMService",
    "ManifestError",
    "Refusal",
    "Spec",
    "check",
    "default_text",
    "judge",
    "load",
    "unsupported",
    "without_effect",
]
