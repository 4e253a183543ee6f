"""The settings of Kafka as a sink."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config.fields import DURATION, Duration, FilePath, Section, Word, needed, one_of, setting, within
from config.sinks.common import BrokerSection, Servers, TlsSettings, split_url

PORT = 9092
_FORM = "kafka://HOST:PORT,HOST:PORT/TOPIC (kafkas:// for TLS)"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise ValueError("a topic's name has 1 to 249 characters, of A-Z a-z 0-9 . _ - only")
    return value


Topic = Annotated[str, AfterValidator(_topic)]
Mechanism = Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]


class SaslSettings(Section):
    """Who we are, where the brokers ask for a name. Files are read anew for each connection."""

    mechanism: Annotated[Mechanism, Word] = setting(
        "scram-sha-512", "plain, scram-sha-256, scram-sha-512 or oauthbearer.", reason="It never sends the password."
    )
    username: str | None = setting(None, "The user's name; none for oauthbearer.", reason="There is no usual one.")
    password: SecretStr | None = setting(None, "The user's password.", reason="There is no usual one.")
    password_file: FilePath | None = setting(
        None, "File with the password; a line feed at its end is not part of it.", reason="Keeps it out of settings."
    )
    token_file: FilePath | None = setting(
        None, "File with the token for oauthbearer.", reason="Whoever renews the token replaces the file."
    )

    @model_validator(mode="after")
    def _consistent(self) -> SaslSettings:
        if self.mechanism == "oauthbearer":
            if not self.token_file:
                raise ValueError("oauthbearer needs a token_file")
            if self.username or self.password or self.password_file:
                raise ValueError("oauthbearer takes a token_file, and neither username nor password")
            return self
        if self.token_file:
            raise ValueError(f"token_file is for oauthbearer, not for {self.mechanism}")
        if not self.username:
            raise ValueError(f"{self.mechanism} needs a username")
        one_of(self, "password", "password_file", needed=True)
        return self


class KafkaSettings(BrokerSection):
    """Kafka: one topic, in which each source's records stand in order, in one partition."""

    type: Literal["kafka"] = setting("kafka", "The type of this sink.", reason="It is what makes it this one.")
    servers: Servers = needed(
        "HOST:PORT of some brokers (port 9092 where none is given); they name the others.",
        reason="There is no usual place.",
    )
    topic: Topic = needed(
        "The topic for the records. It must not be compacted.", reason="Brokers serve many, each with its own names."
    )
    create: bool = setting(
        True, "Whether to create topics that are missing.", reason="It works at once; brokers can forbid it."
    )
    partitions: Annotated[int, Field(ge=1, le=10_000)] = setting(
        1,
        "Partitions of topics created by whalebridge; each source's records are in one of them.",
        reason="Then the records of all nodes have one order.",
    )
    replicas: Annotated[int, Field(ge=1, le=100)] | None = setting(
        None, "Replicas of topics created by whalebridge.", reason="The brokers' own default."
    )
    state_topic: Topic | None = setting(
        None,
        "A second, compacted topic that holds the current state: a row for each living container.",
        reason="Readers that fold the records themselves need none.",
    )
    compression: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], Word] = setting(
        "none", "none, gzip, snappy, lz4 or zstd.", reason="It takes the least CPU on the node."
    )
    tls: TlsSettings = TlsSettings()
    sasl: SaslSettings | None = setting(None, "How to log in.", reason="Brokers ask for it only where told to.")
    client_id: str = setting(
        "whalebridge", "What brokers call us in their logs and quotas.", reason="It says who is asking."
    )
    max_request_size: Annotated[int, Field(ge=16_384, le=104_857_600)] = setting(
        1_048_576,
        "The largest request; a record above it is refused.",
        unit="bytes",
        reason="It is what brokers take unless told otherwise (message.max.bytes).",
    )
    timeout: Annotated[Duration, within("1s", "10m")] = setting(
        timedelta(seconds=30),
        "How long one attempt to connect or to publish may take; then everything is set up anew.",
        unit=DURATION,
        reason="A broker that dies is replaced as leader after some 10 s.",
    )

    @property
    def target(self) -> str:
        """The topic."""
        return self.topic

    @model_validator(mode="after")
    def _consistent(self) -> KafkaSettings:
        if self.state_topic == self.topic:
            raise ValueError("topic and state_topic are the same: one keeps records, the other the last row by key")
        if self.state_topic and self.encoding == "whalewatcher":
            raise ValueError("state_topic holds rows in encoding json: it does not go with encoding whalewatcher")
        return self


def from_url(scheme: str, rest: str) -> dict[str, Any]:
    """Read ``kafka://H1:P,H2:P/TOPIC``, or ``kafkas://`` for TLS."""
    servers, topic = split_url(rest, _FORM)
    settings: dict[str, Any] = {"type": "kafka", "servers": servers, "topic": topic}
    return settings | ({"tls": {"enabled": True}} if scheme == "kafkas" else {})
