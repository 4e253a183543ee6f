"""Secrets from settings or from the files that settings name. Files are read again for each connection.

Invariant: no error message contains a secret; each names the setting and the file to check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError

if TYPE_CHECKING:
    from pydantic import SecretStr


def resolve_secret(setting: str, value: SecretStr | None, file: str | None) -> str | None:
    """Return a secret from the settings, or from a file without its last line feed; None if neither is set.

    Raises:
        TransientError: The file cannot be read, or is empty.
    """
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    secret = read_setting_file(f"{setting}_file", file).removesuffix("\n").removesuffix("\r")
    if not secret:
        raise TransientError(f"{setting}_file {file} is empty")
    return secret


def read_setting_file(setting: str, path: str) -> str:
    """Return the content of the text file that a setting names.

    Raises:
        TransientError: The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TransientError(f"{setting} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: the error contains the file's content.
        raise TransientError(f"{setting} {path} is not a text file") from None
