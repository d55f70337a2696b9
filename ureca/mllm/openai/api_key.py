"""The key of an endpoint: read where it is used, and nowhere to be seen."""

import os
from pathlib import Path

from pydantic import SecretStr

from ureca.errors import SettingsError
from ureca.mllm.openai.settings import OpenAISettings


def read_api_key(settings: OpenAISettings) -> SecretStr | None:
    """Read the key from the variable or file that the settings name.

    Returns:
        None where they name neither.

    Raises:
        SettingsError: there is no such variable or file, or no usable key in it; the message does not show it.
    """
    if settings.api_key_variable is not None:
        source = f"mllm.api_key_variable {settings.api_key_variable}"
        key = os.environ.get(settings.api_key_variable)
        if key is None:
            raise SettingsError(f"{source}: this variable is not set where the requests are sent from")
    elif settings.api_key_file is not None:
        source = f"mllm.api_key_file {settings.api_key_file}"
        try:
            key = Path(settings.api_key_file).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{source}: {error.strerror or error}") from error
        except UnicodeDecodeError:
            # The cause would show the bytes.
            raise SettingsError(f"{source}: this is no text file") from None
    else:
        return None
    key = key.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise SettingsError(f"{source}: a key is one word of printable ASCII, this is empty or something else")
    return SecretStr(key)
