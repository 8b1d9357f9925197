"""What can be wrong with a model's files, or with a text for a given model.

Promise: no other exception leaves this package for such a cause, and no message holds prompt text.
"""


class ModelFilesError(Exception):
    """A file of the model cannot be used: the model's owner has to act, not the caller."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class TemplateRefused(Exception):
    """The chat template does not take these messages: the caller's fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TextRefused(Exception):
    """The text cannot be tokenized: the caller's fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
