"""Settings of the NATS sink."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config.fields import (
    DURATION,
    Duration,
    FilePath,
    LowercaseStr,
    SettingsModel,
    between,
    field,
    mutually_exclusive,
    required_field,
)
from config.sinks.common import BrokerSinkSettings, Servers, TlsSettings, UserOrTokenSettings, split_url

PORT = 4222
_URL_FORMAT = "nats://HOST:PORT,HOST:PORT/SUBJECT.PREFIX (tls:// for TLS)"
_TOKEN = "[A-Za-z0-9_-]+"  # noqa: S105 (of a subject)
_PREFIX = re.compile(rf"{_TOKEN}(\.{_TOKEN})*")
_FIELD = r"\{(host|namespace|project|type)\}"
_TEMPLATE = re.compile(rf"({_FIELD}|{_TOKEN})(\.({_FIELD}|{_TOKEN}))*")
_MAX_LENGTH = 255  # characters; a server closes a connection whose control line exceeds 4 KiB
BUCKET_PREFIX = "KV_"  # of the name of the stream behind a bucket
_OTHERS = re.compile("[^A-Za-z0-9_-]")


def _check_prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value) or len(value) > _MAX_LENGTH:
        raise ValueError(
            "invalid subject; use words of letters, digits, _ and -, separated by dots, up to 255 characters"
        )
    return value


def _check_template(value: str) -> str:
    if not _TEMPLATE.fullmatch(value) or len(value) > _MAX_LENGTH:
        raise ValueError(
            "invalid template; use {host}, {namespace}, {project}, {type} and words of letters, digits, _ and -, "
            "separated by dots"
        )
    fields = re.findall(_FIELD, value)
    if len(set(fields)) < len(fields):
        raise ValueError("duplicate field; use each field at most once")
    return value


def _check_name(value: str) -> str:
    if not re.fullmatch(_TOKEN, value) or len(value) > _MAX_LENGTH:
        raise ValueError("invalid name; use letters, digits, _ and -, up to 255 characters")
    return value


def _check_bucket_name(value: str) -> str:
    if len(value) > _MAX_LENGTH - len(BUCKET_PREFIX):
        raise ValueError(f"invalid name; use up to {_MAX_LENGTH - len(BUCKET_PREFIX)} characters")
    return _check_name(value)


Prefix = Annotated[str, AfterValidator(_check_prefix)]
Name = Annotated[str, AfterValidator(_check_name)]
BucketName = Annotated[str, AfterValidator(_check_bucket_name)]
Replicas = Annotated[int, Field(ge=1, le=5)]


class NatsAuthSettings(UserOrTokenSettings):
    """Credentials, in one of four forms. Files are read, and a token command runs, for each connection."""

    nkey_seed: SecretStr | None = field(None, "Seed of an nkey.")
    nkey_seed_file: FilePath | None = field(None, "File with the seed of an nkey.")
    creds_file: FilePath | None = field(None, "File with a JWT and its seed, as `nsc generate creds` writes it.")

    @model_validator(mode="after")
    def _check_seed(self) -> Self:
        mutually_exclusive(self, "nkey_seed", "nkey_seed_file")
        return self

    @property
    def methods(self) -> list[str]:
        """The configured methods."""
        given = {"nkey_seed": self.nkey_seed or self.nkey_seed_file, "creds_file": self.creds_file}
        return super().methods + [name for name, value in given.items() if value is not None]


class NatsTlsSettings(TlsSettings):
    """TLS to the servers. Files are read again for each connection."""

    handshake_first: bool = field(
        False, "Whether the TLS handshake comes before the server's INFO.", reason="Few servers are configured so."
    )


class StreamSettings(SettingsModel):
    """The JetStream stream that stores the records. An existing stream is never changed."""

    name: Name | None = field(
        None, "Name of the stream. Default: WHALEBRIDGE_ and subject_prefix in upper case, with _ for each dot."
    )
    auto_create: bool = field(True, "Whether to create a missing stream.")
    replicas: Replicas = field(1, "Replicas of a created stream.", reason="One replica works with any server.")
    max_age: Annotated[Duration, between("1m", "3650d")] | None = field(
        timedelta(days=7),
        "Retention of a created stream, 1m to 3650d; null: unlimited. It must be longer than snapshot.interval, or "
        "consumers find no complete snapshot.",
        unit=DURATION,
        reason="Kafka's default.",
    )
    max_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = field(
        None,
        "Maximum size of a created stream, which discards the oldest records; null: unlimited.",
        unit="bytes",
        reason="The right size depends on the account.",
    )
    duplicate_window: Annotated[Duration, between("2m", "7d")] = field(
        timedelta(hours=1),
        "Time during which a created stream recognizes a record that is sent again, and stores it once, 2m to 7d; at "
        "most max_age.",
        unit=DURATION,
        reason="A record whose acknowledgment is lost is sent again within minutes.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if "duplicate_window" in self.model_fields_set and self.limited_duplicate_window < self.duplicate_window:
            raise ValueError("duplicate_window is longer than max_age, which JetStream rejects; lower it, or remove it")
        return self

    @property
    def limited_duplicate_window(self) -> timedelta:
        """The duplicate window, at most ``max_age``."""
        return self.duplicate_window if self.max_age is None else min(self.duplicate_window, self.max_age)


class KvBucketSettings(SettingsModel):
    """A key-value bucket with the current state: one entry per running container, and one per source."""

    name: BucketName | None = field(None, "Name of the bucket; null disables it.")
    auto_create: bool = field(True, "Whether to create a missing bucket. An existing one is never changed.")
    replicas: Replicas = field(1, "Replicas of a created bucket.", reason="One replica works with any server.")


class NatsSettings(BrokerSinkSettings):
    """NATS: a JetStream stream, or core NATS, which stores nothing."""

    type: Literal["nats"] = field("nats", "Type of the sink.")
    servers: Servers = required_field(
        "HOST:PORT of some servers of one cluster (default port 4222). They return the addresses of the others."
    )
    subject_prefix: Prefix = required_field(
        "Prefix of all subjects: words of letters, digits, _ and -, separated by dots."
    )
    subject_template: Annotated[str, AfterValidator(_check_template)] = field(
        "{host}.{namespace}.{type}",
        "Rest of each subject: words and {host}, {namespace}, {project}, {type}, separated by dots. Bytes other than "
        "letters, digits, _ and - are written as =HH, and an empty value as _.",
        reason="Consumers can subscribe to hosts, namespaces and types.",
    )
    mode: Annotated[Literal["jetstream", "core"], LowercaseStr] = field(
        "jetstream",
        "jetstream: records are acknowledged when they are stored. core: only current subscribers receive records; "
        "delivery is not guaranteed.",
    )
    stream: StreamSettings = StreamSettings()
    kv_bucket: KvBucketSettings = KvBucketSettings()
    domain: Name | None = field(None, "JetStream domain.", reason="Only leaf nodes need one.")
    connection_name: str | None = field(
        None,
        "Name of the connection in the servers' reports (`nats server report connections`). Default: whalebridge-HOST.",
        reason="The servers can distinguish the nodes.",
    )
    inbox_prefix: Prefix = field("_INBOX", "Prefix of the subjects of replies.", reason="The default of NATS clients.")
    tls: NatsTlsSettings = NatsTlsSettings()
    auth: NatsAuthSettings = NatsAuthSettings()
    timeout: Annotated[Duration, between("1s", "5m")] = field(
        timedelta(seconds=10),
        "Maximum time to wait for a server's reply, and for progress of a batch, 1s to 5m.",
        unit=DURATION,
        reason="Servers elect a new leader within seconds.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.mode == "core" and self.kv_bucket.name:
            raise ValueError("kv_bucket requires JetStream; set mode: jetstream, or remove kv_bucket")
        if self.kv_bucket.name and self.encoding == "whalewatcher":
            raise ValueError("kv_bucket does not support encoding whalewatcher; use encoding: json")
        if self.mode == "jetstream" and len(self.stream_name) > _MAX_LENGTH:
            raise ValueError(f"the stream's name is longer than {_MAX_LENGTH} characters; set stream.name")
        if self.kv_bucket.name and self.stream_name == f"{BUCKET_PREFIX}{self.kv_bucket.name}":
            raise ValueError("stream.name is the name of the bucket's stream; use another one")
        if f"{self.subject_prefix}.".startswith(f"{self.inbox_prefix}.") or f"{self.inbox_prefix}.".startswith(
            f"{self.subject_prefix}."
        ):
            raise ValueError("subject_prefix and inbox_prefix overlap: the stream would store replies; change one")
        return self

    @property
    def stream_name(self) -> str:
        """The name of the stream, configured or derived from the prefix."""
        return self.stream.name or f"WHALEBRIDGE_{_OTHERS.sub('_', self.subject_prefix).upper()}"


def parse_url(scheme: str, rest: str) -> dict[str, Any]:
    """Parse ``nats://H1:P,H2:P/SUBJECT.PREFIX`` and ``tls://...``."""
    servers, subject = split_url(rest, _URL_FORMAT)
    settings: dict[str, Any] = {"type": "nats", "servers": servers, "subject_prefix": subject}
    if scheme == "tls":
        settings["tls"] = {"enabled": True}
    return settings
