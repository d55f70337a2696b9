"""What a user, or a user's data, can do wrong, as exceptions."""


class UrecaError(Exception):
    """Something its user can put right; the message says what, where and how. Commands print it and exit with 2."""


class InputError(UrecaError):
    """The input of a job cannot be used at all (missing folder, no images, duplicate ids); nothing was started."""


class SettingsError(UrecaError):
    """A setting is unknown, impossible, or at odds with another; the message names its key."""


class OutputError(UrecaError):
    """An output folder cannot be read or written, or holds something else than what was asked to continue."""


class CheckpointError(UrecaError):
    """A directory is not the checkpoint that it should be; the message says what is missing or too many."""


class DataError(UrecaError):
    """One image, annotation file or answer is unusable. It becomes an error row or a failed region, never a crash.

    Args:
        kind: what went wrong in a few snake_case letters, for counting ("truncated", "size_mismatch").
        message: the particulars of this case.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class ImageError(DataError):
    """The image's bytes cannot be turned into pixels within the limits."""


class AnnotationError(DataError):
    """An annotation file cannot be read or does not fit its image."""


class AnswerError(DataError):
    """A captioning model gave no usable answer for a region."""
