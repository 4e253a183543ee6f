"""Bodies of responses to OpenTelemetry's log records, as OTLP/HTTP specifies them. Pure."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from sinks.protos.logs_service_pb2 import ExportLogsServiceResponse, Status


def read_success(body: bytes) -> tuple[str, int]:
    """Return the receiver's message, and how many log records it rejects; "" and 0 if the body is unreadable.

    A message without rejected records is a warning.
    """
    try:
        partial = ExportLogsServiceResponse.FromString(body).partial_success
    except DecodeError:
        return "", 0
    return _text(partial.error_message), max(0, partial.rejected_log_records)


def read_error(body: bytes) -> str:
    """Return the receiver's message for a request that has failed; "" if the body is unreadable."""
    try:
        return _text(Status.FromString(body).message)
    except DecodeError:
        return ""


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
