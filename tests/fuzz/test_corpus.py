"""Run every stored input, and a short fuzz with a fixed seed; show that each target finds a fault."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bridge.consumer import dedup, files
from bridge.containerd import decode, envelope_batches, http2
from bridge.containerd.proxy import policy
from bridge.core import checkpoint
from bridge.outbox import chunks
from config import settings
from sinks import otlp
from sinks.http import otlp_responses
from sinks.nats import messages
from sinks.protos.logs_pb2 import LogsData
from tests.fuzz import engine, output
from tests.fuzz.__main__ import replay
from tests.fuzz.engine import CORPUS, check, corpus, fuzz, save
from tests.fuzz.targets import TARGETS

INPUTS = 2000
SLOW_TARGETS = {"configuration": 40, "environment": 200, "state-directory": 80}
MAX_CORPUS_BYTES = 200_000


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_target_accepts_stored_inputs(name: str) -> None:
    for path, data in corpus(name).items():
        finding = check(TARGETS[name], data)
        assert finding is None, f"{path}\n{finding.error}"


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_target_finds_nothing_in_short_run(name: str) -> None:
    findings = fuzz(name, TARGETS[name], seed=1, inputs=SLOW_TARGETS.get(name, INPUTS)).findings
    assert not findings, "\n".join(f"{finding.data!r}\n{finding.error}" for finding in findings)


def test_fuzz_inputs_depend_only_on_seed() -> None:
    def run(seed: int) -> list[bytes]:
        inputs: list[bytes] = []
        fuzz("events", TARGETS["events"]._replace(run=inputs.append), seed=seed, inputs=100)
        return inputs

    assert run(1) == run(1) != run(2)


def test_fuzz_finds_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_HANG_SECONDS", 0.05)

    def run(data: bytes) -> None:
        while len(data) > 100:
            with suppress(Exception):
                pass

    target = TARGETS["events"]._replace(run=run)
    (finding,) = fuzz("events", target, seed=1, inputs=1000, max_findings=1).findings
    assert "HangError" in finding.place


def test_stored_inputs_are_small_and_have_targets() -> None:
    stored = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in stored} <= set(TARGETS)
    assert sum(path.stat().st_size for path in stored) < MAX_CORPUS_BYTES


def fail(*_: object) -> None:
    raise KeyError("planted")


unbatch = envelope_batches.unbatch
PLANTED: dict[str, tuple[Any, str, Callable[..., object]]] = {
    "events": (decode, "nanoseconds", lambda stamp: stamp.seconds * 10**9 if stamp.seconds >= 0 else None),
    "event-batches": (envelope_batches, "unbatch", lambda message: unbatch(message)[1:]),
    "containers": (decode, "text", lambda value: value.decode("utf-8", "surrogateescape")),
    "tasks": (decode, "nanoseconds", lambda stamp: stamp.seconds * 10**9),
    "http2": (http2, "_number", lambda payload, _: struct.unpack(">I", payload)[0]),
    "configuration": (settings, "format_error", lambda detail, *_: f"{detail['input']}"),
    "environment": (settings, "format_error", lambda detail, *_: f"{detail['input']}"),
    "checkpoint": (checkpoint, "_restore_state", fail),
    "state-directory": (chunks, "_documents", lambda chunk: chunk.documents.split(b"\n")),
    "topic": (dedup, "_first_position", lambda record: (record.lost.epoch, 1) if record.lost else record.position),
    "otlp": (otlp, "decode_bodies", lambda message: [str(LogsData.FromString(message)).encode()]),
    "otlp-responses": (otlp_responses, "_text", lambda value: value.decode()),
    "file": (files.LineSplitter, "finish", lambda _: []),
    "broker-replies": (messages, "decode_token", lambda token: token.encode().decode("ascii")),
    "proxy-requests": (policy, "_check_allowed", lambda *_: None),
    "proxy-responses": (policy, "strip_unknown", lambda method, raw: method.response_type.FromString(raw)),
    "text": (output, "printable_json", lambda document: document),
    "messages": (messages, "encode_token", lambda value: value or "_"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_target_finds_planted_fault(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, attribute, fault = PLANTED[name]
    with monkeypatch.context() as patched:
        patched.setattr(module, attribute, fault)
        (finding,) = fuzz(name, TARGETS[name], seed=1, inputs=20_000, max_findings=1).findings
        path = save(name, finding, tmp_path)
        assert replay(name, path) == 1
    assert replay(name, path) == 0
