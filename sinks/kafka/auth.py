"""TLS and authentication for aiokafka's clients; files are read again for each connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.abc import AbstractTokenProvider

from bridge.core.errors import TransientError
from config.sinks.common import CLIENT_NAME
from sinks.credentials import read_setting_file, resolve_secret, tls_context
from sinks.token_command import TokenCommand

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.kafka import KafkaAuthSettings, KafkaSettings


def client_options(settings: KafkaSettings, clock: Clock) -> dict[str, Any]:
    """Return the client id and the security options for aiokafka's clients.

    Raises:
        TransientError: A file is missing or invalid.
    """
    tls, auth = settings.tls, settings.auth
    return {
        "client_id": CLIENT_NAME if settings.client_id is None else settings.client_id,
        "security_protocol": ("SASL_" if auth else "") + ("SSL" if tls.enabled else "PLAINTEXT"),
        "ssl_context": tls_context(tls) if tls.enabled else None,
        **(_sasl_options(auth, clock) if auth else {}),
    }


def _sasl_options(auth: KafkaAuthSettings, clock: Clock) -> dict[str, Any]:
    options: dict[str, Any] = {"sasl_mechanism": auth.mechanism.upper()}
    if auth.token_command:
        return options | {"sasl_oauth_token_provider": CommandTokenProvider(auth.token_command, clock)}
    if auth.token_file:
        return options | {"sasl_oauth_token_provider": FileTokenProvider(auth.token_file)}
    password = resolve_secret("auth.password", auth.password, auth.password_file)
    return options | {"sasl_plain_username": auth.username, "sasl_plain_password": password}


class FileTokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Reads the token again for each authentication, so that the file can be replaced at any time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read_token()

    async def token(self) -> str:
        """Return the token.

        Raises:
            OSError: The token cannot be read; aiokafka handles no other error here.
        """
        try:
            return self._read_token()
        except TransientError as error:
            raise OSError(str(error)) from error

    def _read_token(self) -> str:
        token = read_setting_file("auth.token_file", self._path).strip()
        if not token:
            raise TransientError(f"auth.token_file {self._path} is empty")
        return token


class CommandTokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Runs a command for a token."""

    def __init__(self, command: Sequence[str], clock: Clock) -> None:
        self._command = TokenCommand(command, clock)

    async def token(self) -> str:
        """Return the token.

        Raises:
            OSError: The command did not return one; aiokafka handles no other error here.
        """
        try:
            return await self._command.token()
        except TransientError as error:
            raise OSError(str(error)) from error
