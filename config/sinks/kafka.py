"""Settings of the Kafka sink."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config.fields import (
    DURATION,
    Command,
    Duration,
    FilePath,
    LowercaseStr,
    SettingsModel,
    between,
    field,
    mutually_exclusive,
    required_field,
)
from config.sinks.common import BrokerSinkSettings, Servers, TlsSettings, split_url

PORT = 9092
_URL_FORMAT = "kafka://HOST:PORT,HOST:PORT/TOPIC (kafkas:// for TLS)"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_INTERNAL_TOPICS = ("__cluster_metadata", "__consumer_offsets", "__share_group_state", "__transaction_state")


def _check_topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise ValueError("invalid topic name; use 1 to 249 characters of A-Z a-z 0-9 . _ -")
    if value in _INTERNAL_TOPICS:
        raise ValueError("a topic of the brokers' own; use another name")
    return value


Topic = Annotated[str, AfterValidator(_check_topic)]
Mechanism = Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]


class KafkaAuthSettings(SettingsModel):
    """SASL authentication. Files are read again for each connection."""

    mechanism: Annotated[Mechanism, LowercaseStr] = field(
        "scram-sha-512",
        "plain, scram-sha-256, scram-sha-512 or oauthbearer.",
        reason="SCRAM never sends the password.",
    )
    username: str | None = field(None, "User name; not for oauthbearer.")
    password: SecretStr | None = field(None, "Password of the user.")
    password_file: FilePath | None = field(
        None, "File with the password of the user; a line feed at its end is not part of it."
    )
    token_file: FilePath | None = field(
        None, "File with the token for oauthbearer. Replace the file to renew the token."
    )
    token_command: Command | None = field(
        None,
        "Absolute path of a program and its arguments, whose output is the token for oauthbearer. It runs without a "
        "shell when a connection needs a token, at most every 60 s, and may take up to 10 s.",
    )

    @property
    def token_source(self) -> str | None:
        """The setting with the token, and its path."""
        if self.token_command:
            return f"auth.token_command {self.token_command[0]}"
        return f"auth.token_file {self.token_file}" if self.token_file else None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.mechanism == "oauthbearer":
            mutually_exclusive(self, "token_file", "token_command", required=True)
            if self.username or self.password or self.password_file:
                raise ValueError("oauthbearer allows neither username nor password; remove them")
            return self
        if self.token_source:
            name = "token_file" if self.token_file else "token_command"
            raise ValueError(f"{name} is not for {self.mechanism}; set mechanism: oauthbearer, or remove it")
        if not self.username:
            raise ValueError(f"{self.mechanism} requires credentials; set username, and password or password_file")
        mutually_exclusive(self, "password", "password_file", required=True)
        return self


class KafkaSettings(BrokerSinkSettings):
    """Kafka: one topic; each source's records are in order, in one partition."""

    timeout_setting: ClassVar[str] = "request_timeout"

    type: Literal["kafka"] = field("kafka", "Type of the sink.")
    bootstrap_servers: Servers = required_field(
        "HOST:PORT of some brokers (default port 9092). They return the addresses of the others."
    )
    topic: Topic = required_field("Topic for the records. It must not be compacted.")
    auto_create: bool = field(True, "Whether to create missing topics. Existing ones are never changed.")
    partitions: Annotated[int, Field(ge=1, le=10_000)] = field(
        1,
        "Partitions of created topics. All records of a source are in the same partition.",
        reason="With one partition, the records of all nodes have one order.",
    )
    replication_factor: Annotated[int, Field(ge=1, le=100)] | None = field(
        None, "Replication factor of created topics. Default: the brokers' default."
    )
    state_topic: Topic | None = field(
        None,
        "A second, compacted topic with the current state: one entry per running container.",
        reason="Consumers that maintain the current state themselves do not need it.",
    )
    compression: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], LowercaseStr] = field(
        "none", "none, gzip, snappy, lz4 or zstd.", reason="It uses the least CPU on the node."
    )
    tls: TlsSettings = TlsSettings()
    auth: KafkaAuthSettings | None = field(None, "Authentication.")
    client_id: str | None = field(
        None,
        "Client id in the brokers' logs, metrics and quotas. Default: whalebridge-HOST.",
        reason="The brokers can distinguish the nodes.",
    )
    max_request_size: Annotated[int, Field(ge=16_384, le=104_857_600)] = field(
        1_048_576,
        "Maximum size of a request. A larger record is rejected.",
        unit="bytes",
        reason="The brokers' default of message.max.bytes.",
    )
    request_timeout: Annotated[Duration, between("1s", "10m")] = field(
        timedelta(seconds=30),
        "Timeout of one attempt to connect or to publish, 1s to 10m. After it, whalebridge reconnects.",
        unit=DURATION,
        reason="Brokers elect a new leader within about 10 s.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.state_topic == self.topic:
            raise ValueError("topic and state_topic are the same; use another topic for the current state")
        if self.state_topic and self.state_topic.replace(".", "_") == self.topic.replace(".", "_"):
            raise ValueError("topic and state_topic differ only in . and _, which brokers reject; change one")
        if self.state_topic and self.encoding == "whalewatcher":
            raise ValueError("state_topic does not support encoding whalewatcher; use encoding: json")
        return self


def parse_url(scheme: str, rest: str) -> dict[str, Any]:
    """Parse ``kafka://H1:P,H2:P/TOPIC``, or ``kafkas://`` for TLS."""
    servers, topic = split_url(rest, _URL_FORMAT)
    settings: dict[str, Any] = {"type": "kafka", "bootstrap_servers": servers, "topic": topic}
    return settings | ({"tls": {"enabled": True}} if scheme == "kafkas" else {})
