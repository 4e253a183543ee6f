"""Where readers read: URLs as sinks have them, and from the settings of sinks what URLs have no room for. Pure.

Whoever publishes to a broker has set up how to get in there: a reader of the same servers gets in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from pydantic import ValidationError

from config.sinks import FileSettings, KafkaSettings, NatsSettings, SinkSettings, kafka, nats, of_url
from config.sinks.common import host_and_port

_ACCESS = {
    "kafka": ("tls", "sasl", "client_id", "timeout"),
    "nats": ("tls", "handshake_first", "login", "domain", "inbox", "timeout"),
}
_OF_THE_TARGET = {"kafka": (), "nats": ("mode", "stream")}


Readable: TypeAlias = FileSettings | KafkaSettings | NatsSettings


def source(url: str, sinks: Iterable[SinkSettings]) -> Readable:
    """Return how to read what ``url`` names: with the access of one of ``sinks`` that has the same servers.

    Among several it is the one with the same topic or subject, else the first.

    Raises:
        ValueError: It names nothing that can be read; the text repeats no more of the URL than its scheme.
    """
    try:
        wanted = of_url(url)
    except ValidationError as error:
        # Not chained: pydantic's text has the values in it.
        raise ValueError("; ".join(_mistakes(error))) from None
    if not isinstance(wanted, Readable):
        raise ValueError(f"what a sink of type {wanted.type} has written cannot be read; - reads standard input")  # noqa: TRY004
    known = [sink for sink in sinks if sink.type == wanted.type and _servers(wanted) and _same_servers(sink, wanted)]
    known.sort(key=lambda sink: sink.target != wanted.target)
    return _with_access(wanted, known[0]) if known else wanted


def _with_access(wanted: Readable, sink: SinkSettings) -> Readable:
    names = _ACCESS[sink.type] + (_OF_THE_TARGET[sink.type] if sink.target == wanted.target else ())
    update: dict[str, Any] = {name: getattr(sink, name) for name in names}
    if not update["tls"].enabled:
        del update["tls"]  # the URL may ask for it
    return wanted.model_copy(update=update)


def _same_servers(sink: SinkSettings, wanted: SinkSettings) -> bool:
    """Whether nobody else than the sink's servers is asked for: logins are not for others."""
    return _servers(wanted) <= _servers(sink)


def _servers(sink: SinkSettings) -> set[tuple[str, int]]:
    match sink:
        case KafkaSettings():
            return {host_and_port(server, kafka.PORT) for server in sink.servers}
        case NatsSettings():
            return {host_and_port(server, nats.PORT) for server in sink.servers}
        case _:
            return set()


def _mistakes(error: ValidationError) -> Iterable[str]:
    for detail in error.errors(include_url=False, include_input=False):
        text = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
        yield ": ".join([".".join(map(str, detail["loc"])), text]) if detail["loc"] else text
