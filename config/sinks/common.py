"""What the settings of several sinks have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, SecretStr, model_validator

from config.fields import FilePath, Items, Section, Word, one_of, setting

_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#@,]+)(?::(?P<port>\d{1,5}))?")
_LAST_PORT = 65535


class SinkSection(Section):
    """What every sink has; a third party's settings are a subclass of this."""

    type: str = setting("", "The type of this sink.", reason="It is what makes it this one.")
    name: str = setting(
        "",
        "What this sink is called in the outbox and in log lines; needed only where two would be called the same.",
        reason="Its type and what it writes to say enough; the outbox remembers by it what this sink already has.",
    )
    heartbeats: bool = setting(
        False, "Whether it gets heartbeats, every heartbeat.interval.", reason="Who reads along sees that it is there."
    )

    @property
    def target(self) -> str:
        """What it writes to, as far as that tells it from other sinks of its type."""
        return ""

    @property
    def called(self) -> str:
        """What it is called: the same after a restart, whatever its place among the sinks."""
        return self.name or (f"{self.type}/{self.target}" if self.target else self.type)


class EncodedSection(SinkSection):
    """A sink that can write its documents in several ways."""

    encoding: Annotated[Literal["json", "whalewatcher"], Word] = setting(
        "json",
        "json: all there is, as `whalebridge schema event` says. whalewatcher: what Go's whalewatcher decodes, life "
        "cycle events only, so that readers can not notice what they missed.",
        reason="Only json has sequences and snapshots, by which a reader can prove that nothing is missing.",
    )


class BrokerSection(EncodedSection):
    """A sink behind a broker, whose messages can have headers."""

    heartbeats: bool = setting(
        True,
        "Whether it gets heartbeats, every heartbeat.interval.",
        reason="Whoever reads from a broker has no other sign that the node is there.",
    )

    cloudevents: Annotated[Literal["none", "binary", "structured"], Word] = setting(
        "binary",
        "CloudEvents 1.0. binary: attributes in headers, the document is the value. structured: attributes and "
        "document in one JSON envelope. none: the document alone.",
        reason="Headers disturb nobody who reads values only, and routers can do without parsing the document.",
    )


def files_named(section: BaseModel) -> Iterator[str]:
    """Return the files that settings refer to: those whose names end in ``_file``, with secrets and certificates."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from files_named(value)
        elif name.endswith("_file") and isinstance(value, str):
            yield value


class TlsSettings(Section):
    """TLS to the servers. Files are read anew for each connection."""

    enabled: bool = setting(False, "Whether to use TLS.", reason="kafkas:// and tls:// turn it on.")
    ca_file: FilePath | None = setting(
        None, "PEM file of the authorities that may have signed the servers' certificates.", reason="The system's."
    )
    cert_file: FilePath | None = setting(
        None, "PEM file of our certificate, intermediate ones after it.", reason="Most servers ask for none."
    )
    key_file: FilePath | None = setting(None, "PEM file of our certificate's key.", reason="It may be in cert_file.")
    key_password: SecretStr | None = setting(None, "What the key is encrypted with.", reason="Most are not.")
    key_password_file: FilePath | None = setting(
        None, "File with what the key is encrypted with.", reason="It keeps the secret out of the environment."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TlsSettings:
        one_of(self, "key_password", "key_password_file")
        if not self.enabled and self.model_fields_set - {"enabled"}:
            raise ValueError("TLS is set up, but not turned on: set enabled to true")
        if self.key_file and not self.cert_file:
            raise ValueError("there is a key_file without a cert_file")
        if (self.key_password or self.key_password_file) and not self.cert_file:
            raise ValueError("there is a password for a key, but no cert_file")
        return self


def _server(value: str) -> str:
    found = _SERVER.fullmatch(value)
    if not found or not 0 < int(found["port"] or 1) <= _LAST_PORT:
        # The text is not repeated: there may be a password in it.
        raise ValueError("write a server as HOST:PORT, or [ADDRESS]:PORT for IPv6; credentials are set elsewhere")
    return value


def _some(servers: tuple[str, ...]) -> tuple[str, ...]:
    if not servers:
        raise ValueError("name one server at least, as HOST:PORT")
    return servers


Servers = Annotated[tuple[Annotated[str, AfterValidator(_server)], ...], Items, AfterValidator(_some)]


def host_and_port(server: str, default: int) -> tuple[str, int]:
    """Split a server as ``Servers`` has them; the brackets of an IPv6 address are left out."""
    found = _SERVER.fullmatch(server)
    if not found:
        raise ValueError("not a server")
    return found["host"].strip("[]"), int(found["port"] or default)


def split_url(rest: str, form: str) -> tuple[list[str], str]:
    """Split what follows a broker's scheme and colon, ``//H1:P,H2:P/TARGET``, into servers and target.

    Raises:
        ValueError: It is not of that form; ``form`` is how it should look.
    """
    if not rest.startswith("//") or any(character in rest for character in "?#"):
        raise ValueError(f"write it as {form}; there is more to set in the configuration than in a URL")
    servers, _, target = rest[2:].partition("/")
    if "@" in servers:
        raise ValueError(f"credentials do not belong into a URL, which others can read; write it as {form}")
    if not servers or not target:
        raise ValueError(f"write it as {form}")
    return servers.split(","), target
