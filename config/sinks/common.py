"""Settings that several types of sinks have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, SecretStr, model_validator

from config.fields import (
    Command,
    CommaSeparated,
    FilePath,
    LowercaseStr,
    SettingsModel,
    field,
    is_host,
    mutually_exclusive,
    non_empty,
)

CLIENT_NAME = "whalebridge"
"""The name of a client at the brokers; that of a bridge also has its host."""
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#@,]+)(?::(?P<port>\d{1,5}))?")
_MAX_PORT = 65535


class BaseSinkSettings(SettingsModel):
    """Settings of every sink; a plugin's settings are a subclass."""

    timeout_setting: ClassVar[str] = "timeout"
    """The setting that limits one attempt, if the sink has such a setting."""

    type: str = field("", "Type of the sink.")
    heartbeats: bool = field(False, "Whether the sink receives heartbeats, every heartbeat.interval.")

    @property
    def batch_records(self) -> int | None:
        """The sink's own limit of records in one call of ``publish``; None if it has no such setting."""
        value: int | None = getattr(self, "max_batch_records", None)
        return value

    @property
    def attempt_timeout(self) -> timedelta | None:
        """The sink's own limit of one attempt; None if it has no such setting."""
        value: timedelta | None = getattr(self, self.timeout_setting, None)
        return value

    @property
    def batch_requests(self) -> int:
        """The maximum number of requests, each with its own timeout, in one call of ``publish``."""
        return 1

    def limit_timeout(self, maximum: timedelta) -> Self:
        """Return these settings with an attempt timeout of at most ``maximum``."""
        if self.attempt_timeout is None:
            return self
        return self.model_copy(update={self.timeout_setting: min(self.attempt_timeout, maximum)})


def _reject_binary(value: Any) -> Any:
    if value == "otlp":
        raise ValueError("otlp is binary, and this sink writes text; use json, or a sink of type kafka, nats or http")
    return value


_TEXT_ENCODINGS = (
    "json: complete records, as `whalebridge schema event` describes. whalewatcher: lifecycle events that Go's "
    "whalewatcher decodes, without sequences and snapshots, so that consumers cannot detect gaps."
)


class EncodedSinkSettings(BaseSinkSettings):
    """A sink with a choice of encodings, all of which are text."""

    encoding: Annotated[Literal["json", "whalewatcher"], BeforeValidator(_reject_binary), LowercaseStr] = field(
        "json", _TEXT_ENCODINGS
    )


class RemoteSinkSettings(BaseSinkSettings):
    """A sink that publishes to other machines, in messages that can have headers."""

    encoding: Annotated[Literal["json", "whalewatcher", "otlp"], LowercaseStr] = field(
        "json", f"{_TEXT_ENCODINGS} otlp: OpenTelemetry log records, each with a complete record as its body."
    )

    heartbeats: bool = field(
        True,
        "Whether the sink receives heartbeats, every heartbeat.interval.",
        reason="Consumers on other machines have no other sign that the node is running.",
    )


class BrokerSinkSettings(RemoteSinkSettings):
    """A sink that publishes to a broker, whose messages can have headers."""

    cloudevents: Annotated[Literal["none", "binary", "structured"], LowercaseStr] = field(
        "binary",
        "CloudEvents 1.0. binary: attributes in headers, the record is the value. structured: attributes and record "
        "in one JSON envelope. none: the record only.",
        reason="Routers can use the headers without parsing the record, and consumers can ignore them.",
    )

    @model_validator(mode="after")
    def _check_envelope(self) -> Self:
        if self.encoding == "otlp" and self.cloudevents == "structured":
            raise ValueError("cloudevents: structured is JSON, and encoding otlp is binary; use cloudevents: binary")
        return self


def referenced_files(model: BaseModel) -> Iterator[str]:
    """Yield the paths in settings whose names end in ``_file``: files with secrets and certificates."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from referenced_files(value)
        elif name.endswith("_file") and isinstance(value, str):
            yield value


class TlsFiles(SettingsModel):
    """Certificates for TLS. Files are read again for each connection."""

    ca_file: FilePath | None = field(
        None, "PEM file of the certificate authorities that sign the servers' certificates. Default: the system's."
    )
    cert_file: FilePath | None = field(None, "PEM file of the client certificate, followed by intermediate ones.")
    key_file: FilePath | None = field(None, "PEM file of the client certificate's key, if it is not in cert_file.")
    key_password: SecretStr | None = field(None, "Password of an encrypted key.")
    key_password_file: FilePath | None = field(None, "File with the password of an encrypted key.")

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        mutually_exclusive(self, "key_password", "key_password_file")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file requires cert_file; set both, or neither")
        if (self.key_password or self.key_password_file) and not self.cert_file:
            raise ValueError("the password of a key requires cert_file; set both, or neither")
        return self


class _TlsSwitch(SettingsModel):
    enabled: bool = field(False, "Whether to use TLS. kafkas:// and tls:// enable it.")


class TlsSettings(TlsFiles, _TlsSwitch):  # in this order, pydantic lists the switch before the files
    """TLS to the servers. Files are read again for each connection."""

    @model_validator(mode="after")
    def _check_enabled(self) -> Self:
        if not self.enabled and self.model_fields_set - {"enabled"}:
            raise ValueError("TLS is configured but disabled; set enabled: true")
        return self


class UserOrTokenSettings(SettingsModel):
    """Credentials: a user with a password, or a token."""

    user: str | None = field(None, "User name.")
    password: SecretStr | None = field(None, "Password of the user.")
    password_file: FilePath | None = field(None, "File with the password of the user.")
    token: SecretStr | None = field(None, "Token.")
    token_file: FilePath | None = field(None, "File with the token.")
    token_command: Command | None = field(
        None,
        "Absolute path of a program and its arguments, whose output is the token. It runs without a shell, and may "
        "take up to 10 s.",
    )

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        mutually_exclusive(self, "password", "password_file")
        mutually_exclusive(self, "token", "token_file", "token_command")
        if (self.user is None) != (self.password is None and self.password_file is None):
            raise ValueError("user and password (or password_file) belong together; set both, or neither")
        if len(self.methods) > 1:
            raise ValueError(f"{' and '.join(self.methods)} exclude each other; set one of them")
        return self

    @property
    def methods(self) -> list[str]:
        """The configured methods."""
        given = {"user": self.user, "token": self.token or self.token_file or self.token_command}
        return [name for name, value in given.items() if value is not None]


def _check_server(value: str) -> str:
    match = _SERVER.fullmatch(value)
    if not match or not 0 < int(match["port"] or 1) <= _MAX_PORT or not is_host(match["host"]):
        # The text is not repeated: it may contain a password.
        raise ValueError("invalid server address; use HOST:PORT, or [ADDRESS]:PORT for IPv6, without credentials")
    return value


Servers = Annotated[
    tuple[Annotated[str, AfterValidator(_check_server)], ...],
    CommaSeparated,
    non_empty("list at least one server, as HOST:PORT"),
]


def host_and_port(server: str, default: int) -> tuple[str, int]:
    """Split an item of ``Servers``, without the brackets of an IPv6 address."""
    match = _SERVER.fullmatch(server)
    if not match:
        raise ValueError("invalid server address")
    return match["host"].strip("[]"), int(match["port"] or default)


def split_url(rest: str, url_format: str) -> tuple[list[str], str]:
    """Split what follows a broker's scheme and colon, ``//H1:P,H2:P/TARGET``, into servers and target.

    Args:
        rest: The text.
        url_format: The format of the URL, for error messages.

    Raises:
        ValueError: The text has another format.
    """
    if not rest.startswith("//") or any(character in rest for character in "?#"):
        raise ValueError(f"invalid URL; use {url_format}, and a mapping for other settings")
    servers, _, target = rest[2:].partition("/")
    if "@" in servers:
        raise ValueError(f"credentials are not allowed in a URL; use {url_format}, and set them in auth")
    if not servers or not target:
        raise ValueError(f"invalid URL; use {url_format}")
    return servers.split(","), target
