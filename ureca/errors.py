"""Exceptions for errors that a user can correct, and for unusable data."""


class UrecaError(Exception):
    """Base of the errors that a user can correct; the message says how. Commands print it and exit with status 2."""


class InputError(UrecaError):
    """The input of a run cannot be used: a missing folder, no images, duplicate ids. Nothing has been started."""


class SettingsError(UrecaError):
    """A setting is unknown, impossible or contradicts another one; the message names its key."""


class OutputError(UrecaError):
    """An output folder cannot be read or written, or holds another run than the one to be resumed."""


class CheckpointError(UrecaError):
    """A directory is not the expected checkpoint; the message names files or weights that are missing or unexpected."""


class EngineError(UrecaError):
    """An inference engine died, and could not be started again."""


class ClusterError(UrecaError):
    """Ray cannot be started, or its cluster cannot be reached."""


class Terminated(KeyboardInterrupt):
    """Interrupt by SIGTERM. Like that by Ctrl-C it ends a command, which can be resumed; the exit status is 143."""


class DataError(UrecaError):
    """An image, annotation file or answer is unusable. It becomes an error row or a failed region; the run goes on.

    Args:
        kind: short name of the error in snake_case, for counting, such as "truncated" or "size_mismatch".
        message: details of this case.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class ImageError(DataError):
    """The bytes of an image cannot be decoded within the limits."""


class AnnotationError(DataError):
    """An annotation file cannot be read or does not fit its image."""


class AnswerError(DataError):
    """A chat model or annotator gave no usable answer for a region."""
