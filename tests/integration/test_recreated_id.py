"""One container id, created and removed in a loop while the bridge cannot keep up: every run is published.

containerd 2.4 loses exit events of containers that are removed the moment they end.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Thread

from tests.bridge_process import BridgeProcess, check_stream
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

STALLS = 4


def test_fault_42_runs_follow_while_bridge_stalls(engine: Containerd, tmp_path: Path) -> None:
    id_, runs, ended = f"again-{os.getpid()}-{engine.version.replace('.', '')}", 0, False

    def run_in_loop() -> None:
        nonlocal runs
        while not ended:
            engine.ctr("run", "--rm", IMAGE, id_, "sh", "-c", f"exit {runs % 100}", check=False)
            runs += 1

    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        loop = Thread(target=run_in_loop)
        loop.start()
        for _ in range(STALLS):
            time.sleep(0.5)
            bridge.process.send_signal(signal.SIGSTOP)
            time.sleep(2)
            bridge.process.send_signal(signal.SIGCONT)
        ended = True
        loop.join()

        records = bridge.wait(
            lambda records: (
                sum(each["type"] == "exited" and each["container"]["id"] == id_ for each in records) >= runs
            ),
            f"{runs} exits",
            60,
        )
    exits = [each for each in records if each["type"] == "exited"]
    assert len({each["container"]["incarnation"] for each in exits}) == len(exits) == runs
    for number, each in enumerate(exits):
        assert each["exit"]["status"] in (None, number % 100)
    check_stream(records)
