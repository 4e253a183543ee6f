"""The implementations of the ports, whose types mypy checks, and the errors of the ports."""

from __future__ import annotations

import pytest

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core import errors
from bridge.core.ports import Clock, EngineClient, Outbox
from bridge.outbox.outbox import StoredOutbox


def test_implementations_match_ports() -> None:
    clock: Clock = SystemClock()
    outbox: type[Outbox] = StoredOutbox
    client: type[EngineClient] = ContainerdClient
    assert (type(clock), outbox, client) == (SystemClock, StoredOutbox, ContainerdClient)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.StreamOverflowError, errors.TransientError),
        (errors.NotFoundError, errors.FatalError),
        (errors.AmbiguousError, errors.FatalError),
    ],
)
def test_error_classes_state_whether_retry_helps(error: type[Exception], kind: type[Exception]) -> None:
    assert issubclass(error, kind)
    assert issubclass(kind, errors.BridgeError)
    assert not issubclass(errors.TransientError, errors.FatalError)


def test_rejected_record_error_has_positions_and_no_retry_class() -> None:
    error = errors.RejectedRecordError("too large", frozenset({(7, 42)}))
    assert (str(error), error.positions) == ("too large", frozenset({(7, 42)}))
    assert not isinstance(error, (errors.TransientError, errors.FatalError))
