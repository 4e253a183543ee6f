"""Settings of the HTTP sink."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from config.fields import DURATION, Duration, LowercaseStr, between, field, is_host, required_field
from config.sinks.common import RemoteSinkSettings, TlsFiles, UserOrTokenSettings

_URL_FORMAT = "http://HOST:PORT/PATH or https://HOST:PORT/PATH"
_URL_CHARACTERS = re.compile(r"https?://[!$-~]+")  # printable ASCII without double quotes and fragments
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[!-~]([ !-~]{0,1000}[!-~])?")
_OWN_HEADERS = {
    "authorization": "set auth instead",
    "user-agent": "set user_agent instead",
    "content-type": "it depends on cloudevents and encoding",
    "idempotency-key": "it is that of the records",
}
_CONNECTION_HEADERS = frozenset(
    {"connection", "content-encoding", "content-length", "expect", "host", "te", "trailer", "transfer-encoding"}
)


def _check_url(value: str) -> str:
    # The text is not repeated: it may contain a password.
    try:
        parts = urlsplit(value)
        valid = bool(parts.hostname) and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not _URL_CHARACTERS.fullmatch(value):
        raise ValueError(f"invalid URL; use {_URL_FORMAT}, with other characters percent-encoded")
    if "@" in parts.netloc:
        raise ValueError(f"credentials are not allowed in a URL; use {_URL_FORMAT}, and set them in auth")
    return value


def _check_header_name(value: str) -> str:
    name = value.lower()
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("invalid name of a header; use letters, digits and -")
    if name in _OWN_HEADERS:
        raise ValueError(f"the sink sets this header; {_OWN_HEADERS[name]}")
    if name in _CONNECTION_HEADERS or name.startswith(("ce-", "proxy-")):
        raise ValueError("reserved for the protocol; use another header")
    return value


def _check_header_value(value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("invalid value of a header; use printable ASCII, without spaces at its ends")
    return value


def _check_header_names_differ(value: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in value}) < len(value):
        raise ValueError("duplicate header; the case of its name does not matter")
    return value


Headers = Annotated[
    dict[Annotated[str, AfterValidator(_check_header_name)], Annotated[str, AfterValidator(_check_header_value)]],
    AfterValidator(_check_header_names_differ),
]


class HttpAuthSettings(UserOrTokenSettings):
    """Credentials, for basic authentication (user) or as a bearer token. Files are read again for each batch.

    The token of a command is used for a minute, or until the receiver rejects it.
    """

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        if ":" in (self.user or ""):
            raise ValueError("user contains a colon, which basic authentication does not allow; use another user")
        return self


class HttpSinkSettings(RemoteSinkSettings):
    """A receiver of HTTP requests, such as a webhook."""

    type: Literal["http"] = field("http", "Type of the sink.")
    url: Annotated[str, AfterValidator(_check_url)] = required_field(
        "URL for POST requests: http://HOST:PORT/PATH, or https:// for TLS. Redirects are not followed."
    )
    cloudevents: Annotated[Literal["none", "binary", "structured", "batched"], LowercaseStr] = field(
        "binary",
        "CloudEvents 1.0. binary: one record per request, attributes in headers, the record is the body. structured: "
        "one record per request, attributes and record in one JSON envelope. batched: a JSON array of such envelopes "
        "per request. none: records only, many per request: one per line, or with encoding otlp as OTLP/HTTP.",
        reason="Every receiver of JSON understands it.",
    )
    headers: Headers = field(
        dict, "Additional headers of each request, by name. They are not secret: credentials belong in auth."
    )
    auth: HttpAuthSettings = HttpAuthSettings()
    tls: TlsFiles = TlsFiles()
    user_agent: Annotated[str, AfterValidator(_check_header_value)] | None = field(
        None, "The header User-Agent. Default: whalebridge-HOST.", reason="The receiver can distinguish the nodes."
    )
    max_batch_records: Annotated[int, Field(ge=1, le=1000)] = field(
        100,
        "Maximum number of records that are published together: in one request, or with cloudevents binary and "
        "structured, one after the other.",
        reason="Receivers process a request within seconds.",
    )
    max_batch_bytes: Annotated[int, Field(ge=1024, le=104_857_600)] = field(
        524_288,
        "Maximum size of a request with several records. Lowered at run time if the receiver responds with status 413.",
        unit="bytes",
        reason="Many servers limit requests to 1 MiB.",
    )
    max_record_bytes: Annotated[int, Field(ge=16_384, le=104_857_600)] = field(
        1_048_576, "Maximum size of a request with one record. A larger record is rejected.", unit="bytes"
    )
    timeout: Annotated[Duration, between("1s", "5m")] = field(
        timedelta(seconds=30),
        "Timeout of one request, with its connection, 1s to 5m.",
        unit=DURATION,
        reason="Receivers that store records respond within seconds, also under load.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not self.uses_tls and self.tls.model_fields_set:
            raise ValueError("tls is configured, but the URL is http://; use https://")
        if self.encoding == "otlp" and self.cloudevents != "none":
            raise ValueError(f"cloudevents: {self.cloudevents} does not support encoding otlp; set cloudevents: none")
        if self.sends_single_records and "max_batch_bytes" in self.model_fields_set:
            raise ValueError(f"cloudevents {self.cloudevents} sends no batches; remove max_batch_bytes")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("https:")

    @property
    def sends_single_records(self) -> bool:
        """Whether each record has a request of its own."""
        return self.cloudevents in ("binary", "structured")

    @property
    def batch_requests(self) -> int:
        """Return one per record: with batches, a rejected one is sent in parts."""
        return self.max_batch_records

    @property
    def endpoint(self) -> str:
        """The URL without its query, for messages: receivers may expect keys in queries."""
        return self.url.partition("?")[0]


def parse_url(scheme: str, rest: str) -> dict[str, Any]:
    """Parse ``http://HOST:PORT/PATH`` and ``https://...``."""
    if not rest.startswith("//"):
        raise ValueError(f"invalid URL; use {_URL_FORMAT}")
    return {"type": "http", "url": f"{scheme}:{rest}"}
