"""The settings of a NATS sink, and the URL that stands for it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config.fields import DURATION, Duration, FilePath, Section, Word, needed, one_of, setting, within
from config.sinks.common import BrokerSection, Servers, TlsSettings, split_url

PORT = 4222
_FORM = "nats://HOST:PORT,HOST:PORT/SUBJECT.PREFIX (tls:// for TLS)"
_TOKEN = "[A-Za-z0-9_-]+"  # noqa: S105 (of a subject)
_PREFIX = re.compile(rf"{_TOKEN}(\.{_TOKEN})*")
_FIELD = r"\{(host|namespace|project|type)\}"
_TEMPLATE = re.compile(rf"({_FIELD}|{_TOKEN})(\.({_FIELD}|{_TOKEN}))*")
_LONGEST = 255  # characters; a server ends a connection whose control line exceeds 4 KiB
_OTHERS = re.compile("[^A-Za-z0-9_-]")


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value) or len(value) > _LONGEST:
        raise ValueError("write words of letters, digits, _ and -, parted by dots, 255 characters at most")
    return value


def _template(value: str) -> str:
    if not _TEMPLATE.fullmatch(value) or len(value) > _LONGEST:
        raise ValueError(
            "write {host}, {namespace}, {project}, {type} and words of letters, digits, _ and -, parted by dots"
        )
    fields = re.findall(_FIELD, value)
    if len(set(fields)) < len(fields):
        raise ValueError("name each field once at most")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(_TOKEN, value) or len(value) > _LONGEST:
        raise ValueError("write letters, digits, _ and -, 255 characters at most")
    return value


Prefix = Annotated[str, AfterValidator(_prefix)]
Name = Annotated[str, AfterValidator(_name)]
Replicas = Annotated[int, Field(ge=1, le=5)]


class LoginSettings(Section):
    """Who we are to the servers, in one of four ways. Files are read anew for each connection."""

    user: str | None = setting(None, "User name.", reason="A server asks for what its configuration says.")
    password: SecretStr | None = setting(None, "The user's password.", reason="A file keeps it out of here.")
    password_file: FilePath | None = setting(
        None, "File with the user's password.", reason="It can be replaced while whalebridge runs."
    )
    token: SecretStr | None = setting(None, "Token.", reason="A file keeps it out of here.")
    token_file: FilePath | None = setting(
        None, "File with the token.", reason="It can be replaced while whalebridge runs."
    )
    nkey_seed: SecretStr | None = setting(None, "Seed of an nkey.", reason="A file keeps it out of here.")
    nkey_seed_file: FilePath | None = setting(
        None, "File with the seed of an nkey.", reason="It can be replaced while whalebridge runs."
    )
    creds_file: FilePath | None = setting(
        None, "File with a JWT and its seed, as `nsc generate creds` writes it.", reason="JWTs are always in files."
    )

    @model_validator(mode="after")
    def _consistent(self) -> LoginSettings:
        one_of(self, "password", "password_file")
        one_of(self, "token", "token_file")
        one_of(self, "nkey_seed", "nkey_seed_file")
        if (self.user is None) != (self.password is None and self.password_file is None):
            raise ValueError("set both user and password (or password_file), or neither")
        if len(self.ways) > 1:
            raise ValueError(f"set one of {' and '.join(self.ways)}, not both")
        return self

    @property
    def ways(self) -> list[str]:
        """Which ways are set up."""
        given = {
            "user": self.user,
            "token": self.token or self.token_file,
            "nkey_seed": self.nkey_seed or self.nkey_seed_file,
            "creds_file": self.creds_file,
        }
        return [name for name, value in given.items() if value is not None]


class StreamSettings(Section):
    """The JetStream stream that holds the records."""

    name: Name | None = setting(
        None, "What it is called.", reason="WHALEBRIDGE_ and the subject in upper case, with _ for dots."
    )
    create: bool = setting(
        True,
        "Whether to create it where it is missing. One that is there is never changed.",
        reason="It works at once; who lets whalebridge do less creates it beforehand.",
    )
    replicas: Replicas = setting(1, "On how many servers a created one is kept.", reason="It is there on any server.")
    max_age: Annotated[Duration, within("1m", "3650d")] | None = setting(
        timedelta(days=7),
        "How long a created one keeps records; null: for ever.",
        unit=DURATION,
        reason="As long as Kafka does. It must be longer than snapshot.interval, or readers find no whole snapshot.",
    )
    max_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = setting(
        None,
        "How much a created one keeps, the oldest records making room; null: no bound.",
        unit="bytes",
        reason="Some accounts ask for a bound; how much is right nobody knows but the operator.",
    )
    duplicate_window: Annotated[Duration, within("2m", "7d")] = setting(
        timedelta(hours=1),
        "For how long a created one knows which records it has, so that one sent again is stored once.",
        unit=DURATION,
        reason="An acknowledgement that got lost is made up for within minutes.",
    )


class BucketSettings(Section):
    """A key-value bucket with the current state: a row for each living container, and one for each source."""

    name: Name | None = setting(None, "What it is called; null: there is none.", reason="The stream has it all.")
    create: bool = setting(
        True, "Whether to create it where it is missing.", reason="One that is there is never changed."
    )
    replicas: Replicas = setting(1, "On how many servers a created one is kept.", reason="It is there on any server.")


class NatsSettings(BrokerSection):
    """NATS: a JetStream stream, or subjects that nobody keeps."""

    type: Literal["nats"] = setting("nats", "The type of this sink.", reason="It is what makes it this one.")
    servers: Servers = needed(
        "HOST:PORT of some servers of one cluster (port 4222 where none is given); they name the others.",
        reason="There is no usual place.",
    )
    subject: Prefix = needed(
        "What all subjects begin with: words of letters, digits, _ and -, parted by dots.",
        reason="One server serves many.",
    )
    template: Annotated[str, AfterValidator(_template)] = setting(
        "{host}.{namespace}.{type}",
        "What follows in each subject: words and {host}, {namespace}, {project}, {type}, parted by dots. Other bytes "
        "than letters, digits, _ and - are written =HH, and what is empty as _.",
        reason="Readers can choose hosts, namespaces and types; a project may be anything.",
    )
    mode: Annotated[Literal["jetstream", "core"], Word] = setting(
        "jetstream",
        "jetstream: acknowledged when stored. core: heard by who listens at the moment, and kept by nobody.",
        reason="Only what is stored is not lost.",
    )
    stream: StreamSettings = StreamSettings()
    bucket: BucketSettings = BucketSettings()
    domain: Name | None = setting(None, "JetStream domain.", reason="Only leaf nodes need one.")
    inbox: Prefix = setting(
        "_INBOX", "What the subjects of answers begin with.", reason="NATS' own; permissions may want another."
    )
    tls: TlsSettings = TlsSettings()
    handshake_first: bool = setting(
        False, "Whether TLS begins before the server says anything.", reason="Few servers are set up so."
    )
    login: LoginSettings = LoginSettings()
    timeout: Annotated[Duration, within("1s", "5m")] = setting(
        timedelta(seconds=10),
        "How long a server may take to answer, and a batch may go without any progress.",
        unit=DURATION,
        reason="A new leader is found within a few seconds.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> NatsSettings:
        if self.mode == "core" and self.bucket.name:
            raise ValueError("a bucket is a part of JetStream: set mode to jetstream, or leave the bucket out")
        if self.bucket.name and self.encoding == "whalewatcher":
            raise ValueError("a bucket holds rows in encoding json: it does not go with encoding whalewatcher")
        if self.handshake_first and not self.tls.enabled:
            raise ValueError("handshake_first is about TLS, which is not turned on: set tls.enabled to true")
        return self

    @property
    def target(self) -> str:
        """The prefix of its subjects."""
        return self.subject

    @property
    def stream_name(self) -> str:
        """What its stream is called."""
        return self.stream.name or f"WHALEBRIDGE_{_OTHERS.sub('_', self.subject).upper()}"


def from_url(scheme: str, rest: str) -> dict[str, Any]:
    """Read ``nats://H1:P,H2:P/SUBJECT.PREFIX`` and ``tls://...``."""
    servers, subject = split_url(rest, _FORM)
    settings: dict[str, Any] = {"type": "nats", "servers": servers, "subject": subject}
    if scheme == "tls":
        settings["tls"] = {"enabled": True}
    return settings
