"""What went wrong with Kafka, in words: what it was, and what to do. Pure.

No text has a secret in it: it is made of what the brokers say, of the settings' names, and of nothing else.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
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
    kafka_errors,
)

if TYPE_CHECKING:
    from config.sinks.kafka import KafkaSettings

CONNECT_ERRORS = (OSError, KafkaError, TimeoutError, ValueError, AssertionError)
"""What aiokafka raises where a connection cannot be made; the last two by a peer that breaks the protocol."""


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc] # aiokafka has no types
    """A broker's own rules (of schemas, of compacted topics) are against a record."""

    errno = 87
    message = "INVALID_RECORD"
    description = "This record has failed the validation on the broker."


kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)  # aiokafka 0.14 calls it an unknown error

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
REFUSED = (*TOO_LARGE, InvalidRecordError, PolicyViolationError)
"""What a broker says of records that it will never take."""

POISONED = (OutOfOrderSequenceNumber, UnknownProducerId, ProducerFenced, InvalidProducerEpoch)
"""What a broker says to a producer whose count of records it does not share: another one has to take over."""

_OTHER_HOST = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


def not_reached(error: BaseException, server: str, settings: KafkaSettings) -> str:
    """Tell why a server could not be connected to, or would not let us in."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return f"{server}: {_tls(cause, settings)}"
    return f"{server}: {_login(error, settings) or _network(error, settings)}"


def not_allowed(error: BaseException, topic: str, settings: KafkaSettings) -> str | None:
    """Tell which permission is missing; None where it is something else."""
    if isinstance(error, TopicAuthorizationFailedError):
        return f"{who(settings)} may not write to topic {topic}: allow Describe and Write on it"
    if isinstance(error, ClusterAuthorizationFailedError):
        return f"{who(settings)} may not use an idempotent producer: allow IdempotentWrite on the cluster"
    return None


def who(settings: KafkaSettings) -> str:
    """Name whom the brokers take us for, as far as we can know."""
    if settings.auth and settings.auth.username:
        return f"user {settings.auth.username}"
    if settings.auth:
        return "the owner of the token"
    return "the owner of our certificate" if settings.tls.cert_file else "whoever comes without a login"


def said(error: BaseException) -> str:
    """Return a broker's error without what aiokafka puts around it, or any other error with its kind."""
    if isinstance(error, BrokerResponseError):
        text = str(error).rpartition(f"{type(error).__name__}: ")[2]
        return text if text and not text.startswith("[Error") else type(error).__name__
    text = str(error).removeprefix(f"{type(error).__name__}: ")
    return text if text and text != type(error).__name__ else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _tls(error: ssl.SSLError, settings: KafkaSettings) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OTHER_HOST:
            return f"its certificate is for another host: {error.verify_message}; name the server as it names itself"
        trusted = settings.tls.ca_file or "the system's authorities; set tls.ca_file"
        return f"its certificate is not trusted: {error.verify_message}; trusted are those of {trusted}"
    reason = (error.reason or "").replace("_", " ").lower()
    if "alert" in reason or "certificate" in reason:
        ours = settings.tls.cert_file
        told = f"it does not accept our certificate {ours}" if ours else "it wants a certificate: set tls.cert_file"
        return f"{told} ({reason})"
    return f"TLS fails ({reason or error}): is it a port for TLS?"


def _login(error: BaseException, settings: KafkaSettings) -> str | None:
    auth = settings.auth
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"it does not take this login: set auth.mechanism to another ({said(error)})"
    if isinstance(error, IllegalSaslStateError):
        return "it wants no login at this port: unset auth, or take the port for logins"
    if isinstance(error, SaslAuthenticationFailed) and auth:
        given = auth.password_file or auth.token_file or "auth.password"
        return f"it refuses {who(settings)} by {auth.mechanism}: check name and secret ({given}): {said(error)}"
    return None


def _network(error: BaseException, settings: KafkaSettings) -> str:
    match error:
        case TimeoutError():
            text = "no answer in time"
        case socket.gaierror():
            text = f"its name is not known: {error.strerror}"
        case KafkaConnectionError() | ConnectionResetError():
            text = _closed(settings)
        case ConnectionRefusedError():
            text = "connection refused: nothing listens there"
        case OSError():
            text = error.strerror or said(error)
        case _:
            text = said(error)
    return text


def _closed(settings: KafkaSettings) -> str:
    if settings.tls.enabled:
        kind = "for logins" if settings.auth else "one that wants no login (auth)"
        return f"it closed the connection: is it a port for TLS, and {kind}?"
    wanted = "TLS (kafkas://, tls.enabled)" + ("" if settings.auth else " or a login (auth)")
    return f"it closed the connection: perhaps it wants {wanted}"
