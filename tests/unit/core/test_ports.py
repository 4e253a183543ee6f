"""What fits the ports (mypy checks that), and the errors that cross them."""

from __future__ import annotations

import pytest

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core import errors
from bridge.core.ports import Clock, Outbox, Source
from bridge.outbox.memory import MemoryOutbox


def test_the_real_parts_fit_the_ports() -> None:
    clock: Clock = SystemClock()
    outbox: Outbox = MemoryOutbox(["stdout"], clock)
    source: type[Source] = ContainerdClient
    assert (outbox.depth("stdout"), source) == (0, ContainerdClient)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.StreamOverflowError, errors.TransientError),
        (errors.NotFoundError, errors.FatalError),
        (errors.AmbiguousError, errors.FatalError),
    ],
)
def test_an_error_tells_whether_trying_again_may_help(error: type[Exception], kind: type[Exception]) -> None:
    assert issubclass(error, kind)
    assert issubclass(kind, errors.BridgeError)
    assert not issubclass(errors.TransientError, errors.FatalError)


def test_a_refusal_names_what_was_refused_and_is_neither() -> None:
    refusal = errors.RefusedRecordError("too large", frozenset({(7, 42)}))
    assert (str(refusal), refusal.positions) == ("too large", frozenset({(7, 42)}))
    assert not isinstance(refusal, (errors.TransientError, errors.FatalError))
