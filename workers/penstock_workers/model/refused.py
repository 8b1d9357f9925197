"""Why a source cannot become a model directory.

Promise: a message names the field, the source and the reason; `code` is a word for programs, and becomes the reason of a
condition. No message holds a credential.
"""

from typing import Literal

FIELD = "spec.model.source"

Code = Literal[
    "ModelInvalid", "ModelNotFound", "ModelAccessDenied", "ModelSourceUnreachable", "ModelCorrupt", "ModelCacheUnusable"
]


class SourceRefused(Exception):
    """The source cannot become a model directory as it stands; trying again gives the same answer."""

    def __init__(self, source: str, reason: str, code: Code = "ModelInvalid") -> None:
        super().__init__(source, reason, code)  # all, so that it crosses processes
        self.source = source
        self.reason = reason
        self.code: Code = code

    def __str__(self) -> str:
        return f"{FIELD}: {self.source!r}: {self.reason}"


class SourceUnavailable(SourceRefused):
    """The source did not answer, or not with what it had promised; trying again may help."""

    def __init__(
        self, source: str, reason: str, code: Code = "ModelSourceUnreachable", retry_after_s: float | None = None
    ) -> None:
        super().__init__(source, reason, code)
        self.retry_after_s = retry_after_s
