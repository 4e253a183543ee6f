"""Error messages for failures of Kafka: the cause, and what to do.

Invariant: no message contains a secret. Messages consist of the brokers' texts, names of settings, and paths.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    IllegalSaslStateError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    PolicyViolationError,
    ProducerFenced,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnsupportedSaslMechanismError,
)

from sinks.kafka.aiokafka_patches import InvalidRecordError
from sinks.tls_errors import describe_tls_error, find_tls_error

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings

CONNECT_ERRORS = (OSError, KafkaError, TimeoutError, ValueError, AssertionError)
"""Errors of aiokafka when it cannot connect; the last two if the peer violates the protocol."""


TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
REJECTED = (*TOO_LARGE, InvalidRecordError, PolicyViolationError)
"""Errors for records that a broker will never accept."""

FENCED = (OutOfOrderSequenceNumber, UnknownProducerId, ProducerFenced, InvalidProducerEpoch)
"""Errors for a producer whose epoch or sequence numbers the broker rejects: a new producer is needed."""


def describe_connect_error(error: BaseException, server: str, settings: KafkaSettings) -> str:
    """Describe why connecting to a server, or authenticating, failed."""
    if tls_error := find_tls_error(error):
        return f"{server}: {describe_tls_error(tls_error, settings.tls)}"
    return f"{server}: {_describe_auth_error(error, settings) or _describe_network_error(error, settings)}"


def describe_denial(error: BaseException, topic: str, settings: KafkaSettings) -> str | None:
    """Describe which permission is missing; None for other errors."""
    if isinstance(error, TopicAuthorizationFailedError):
        return f"{principal(settings)} is not authorized to write to topic {topic}; allow Describe and Write on it"
    if isinstance(error, ClusterAuthorizationFailedError):
        return f"{principal(settings)} is not authorized to write idempotently; allow IdempotentWrite on the cluster"
    return None


def principal(settings: KafkaSettings) -> str:
    """Describe the principal, as far as the settings determine it."""
    if settings.auth and settings.auth.username:
        return f"user {settings.auth.username}"
    if settings.auth:
        return "the principal of the token"
    return "the principal of the client certificate" if settings.tls.cert_file else "the anonymous client"


def describe(error: BaseException) -> str:
    """Return a broker's error without aiokafka's prefix, or the text of any other error, or its type."""
    if isinstance(error, BrokerResponseError):
        text = str(error).rpartition(f"{type(error).__name__}: ")[2]
        return text if text and not text.startswith("[Error") else type(error).__name__
    text = str(error).removeprefix(f"{type(error).__name__}: ")
    return text if text and text != type(error).__name__ else type(error).__name__


def _describe_auth_error(error: BaseException, settings: KafkaSettings) -> str | None:
    auth = settings.auth
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"SASL mechanism is not enabled ({describe(error)}); set auth.mechanism to another one"
    if isinstance(error, IllegalSaslStateError):
        return "the listener does not use SASL; remove auth, or use the port of a SASL listener"
    if isinstance(error, SaslAuthenticationFailed) and auth:
        checked = auth.password_file or auth.token_source or "auth.username and auth.password"
        return f"authentication of {principal(settings)} by {auth.mechanism} failed: {describe(error)}; check {checked}"
    return None


def _describe_network_error(error: BaseException, settings: KafkaSettings) -> str:
    match error:
        case TimeoutError():
            text = "no response in time"
        case socket.gaierror():
            text = f"host name cannot be resolved: {error.strerror}"
        case KafkaConnectionError() | ConnectionResetError():
            text = _describe_disconnect(settings)
        case ConnectionRefusedError():
            text = "connection refused (no listener at this address)"
        case OSError():
            text = error.strerror or describe(error)
        case _:
            text = describe(error)
    return text


def _describe_disconnect(settings: KafkaSettings) -> str:
    if settings.tls.enabled:
        listener = "SASL over TLS" if settings.auth else "TLS without SASL (auth)"
        return f"connection closed by the broker; check whether the port is for {listener}"
    needed = "TLS (kafkas://, tls.enabled)" + ("" if settings.auth else " or SASL (auth)")
    return f"connection closed by the broker; it may require {needed}"
