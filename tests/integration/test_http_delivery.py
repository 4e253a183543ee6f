"""From containerd to a receiver of HTTP requests: nothing is missing, although both ends are killed."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.clock import SystemClock
from config.sinks.http import HttpSinkSettings
from sinks.http.sink import HttpSink
from tests.bridge_process import BridgeProcess, transitions
from tests.documentation import ROOT, code_blocks
from tests.eventually import eventually
from tests.integration.delivery import ContainerChurn, complete_records, deduplicated_records, wait_consistent
from tests.integration.engines import one_engine
from tests.integration.target_checks import publish_until_accepted
from tests.sample_records import records
from tests.testbed.containerd import Containerd
from tests.testbed.http_receiver import HttpReceiver
from tests.testbed.server import HOST, free_port

_numbers = itertools.count()


@pytest.fixture
def churn(engine: Containerd) -> Iterator[ContainerChurn]:
    churn = ContainerChurn(engine, f"http{os.getpid()}x{next(_numbers)}")
    yield churn
    churn.remove_all()


@one_engine
@pytest.mark.parametrize("mode", ["binary", "batched", "none"])
def test_fault_25_http_receiver_comes_and_goes(
    mode: str, engine: Containerd, churn: ContainerChurn, tmp_path: Path
) -> None:
    with HttpReceiver() as receiver:

        def stored() -> list[bytes]:
            return receiver.stored("events")

        receiver.kill()
        bridge = BridgeProcess(
            engine.address,
            tmp_path,
            *("--namespace", churn.namespace),
            sinks=[f"{receiver.url}/events"],
            state_dir=tmp_path / "state",
            environment={"WHALEBRIDGE_SINKS__HTTP__CLOUDEVENTS": mode, "WHALEBRIDGE_HEARTBEAT__INTERVAL": "1s"},
        )
        with bridge:
            bridge.wait_logged("synced")  # without the receiver
            with churn:
                for _ in range(3):
                    time.sleep(1)
                    receiver.start()
                    before = len(stored())
                    eventually(lambda: len(stored()) > before, "records", within=60)  # noqa: B023 (called at once)
                    receiver.kill()
                time.sleep(1)
                receiver.start()
            wait_consistent(stored, engine, churn.namespace)
            bridge.kill()  # while no container changes: it would miss a run that begins and ends meanwhile
            bridge.start()
            bridge.wait_logged("synced", 2)
            for _ in range(5):
                churn.step()
            wait_consistent(stored, engine, churn.namespace)
            eventually(lambda: start_counts(deduplicated_records(stored())) == churn.runs, "all starts")
        published = complete_records(stored())
        assert start_counts(published) == churn.runs


def start_counts(published: list[dict[str, object]]) -> Counter[object]:
    """Return the number of published starts by container."""
    return Counter(each["id"] for each in transitions(published) if each["type"] == "started")


# --- docs/http.md ---


@pytest.fixture
def documented_receiver(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """A function that starts the receiver of the documentation, or kills and restarts it, and returns its port."""
    (code,) = code_blocks((ROOT / "docs" / "http.md").read_text(), "python")
    (tmp_path / "receiver.py").write_text(code)
    port, running = free_port(), list[subprocess.Popen[bytes]]()

    def is_listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    def start() -> int:
        for process in running:
            process.kill()
            process.wait()
        command = [sys.executable, str(tmp_path / "receiver.py"), str(tmp_path / "stored.jsonl"), str(port)]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        eventually(is_listening, "the receiver")
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode", ["binary", "none"])
async def test_documented_http_receiver_stores_records_once(
    mode: str, documented_receiver: Callable[[], int], tmp_path: Path
) -> None:
    published = records(50)
    settings = {"url": f"http://{HOST}:{documented_receiver()}/", "cloudevents": mode}
    for _ in range(2):  # a new sink sends everything again, as after a crash
        sink = HttpSink(HttpSinkSettings.model_validate(settings), SystemClock())
        await sink.start()
        await publish_until_accepted(sink, published[:30])
        documented_receiver()
        await publish_until_accepted(sink, published)
        await sink.close()
    assert (tmp_path / "stored.jsonl").read_bytes().splitlines() == [each.data for each in published]
