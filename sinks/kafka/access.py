"""TLS and authentication for aiokafka's clients; files are read again for each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka.abc import AbstractTokenProvider

from bridge.core.errors import TransientError
from sinks.access import read, secret, tls_context

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings, SaslSettings


def options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the security options for aiokafka's clients.

    Raises:
        TransientError: A file is missing or invalid.
    """
    tls, sasl = settings.tls, settings.sasl
    return {
        "client_id": settings.client_id,
        "security_protocol": ("SASL_" if sasl else "") + ("SSL" if tls.enabled else "PLAINTEXT"),
        "ssl_context": tls_context(tls) if tls.enabled else None,
        **(_login(sasl) if sasl else {}),
    }


def _login(sasl: SaslSettings) -> dict[str, Any]:
    login: dict[str, Any] = {"sasl_mechanism": sasl.mechanism.upper()}
    if sasl.token_file:
        return login | {"sasl_oauth_token_provider": TokenFile(sasl.token_file)}
    password = secret("sasl.password", sasl.password, sasl.password_file)
    return login | {"sasl_plain_username": sasl.username, "sasl_plain_password": password}


class TokenFile(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Reads the token again for each authentication, so that the file can be replaced at any time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._token()

    async def token(self) -> str:
        """Return the token.

        Raises:
            OSError: The token cannot be read; aiokafka handles no other error here.
        """
        try:
            return self._token()
        except TransientError as error:
            raise OSError(str(error)) from error

    def _token(self) -> str:
        token = read("sasl.token_file", self._path).strip()
        if not token:
            raise TransientError(f"sasl.token_file {self._path} is empty")
        return token
