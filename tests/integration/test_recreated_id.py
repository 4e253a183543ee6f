"""One container id, created and removed in a loop while the bridge cannot keep up: every run is published.

containerd 2.4 loses exit events of containers that are removed the moment they end.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bridge_process import BridgeProcess, check_stream
from tests.integration.running import exits, suspended
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

STALLS = 4


def test_fault_42_runs_follow_while_bridge_stalls(engine: Containerd, tmp_path: Path) -> None:
    id_, ended = f"again-{os.getpid()}-{engine.version.replace('.', '')}", False
    statuses: list[int] = []

    def run_in_loop() -> None:
        while not ended:
            status = len(statuses) % 100
            result = engine.ctr("run", "--rm", IMAGE, id_, "sh", "-c", f"exit {status}", check=False)
            assert (result.returncode, "ctr: " in result.stderr) == (status, False), result.stderr
            statuses.append(status)

    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        with ThreadPoolExecutor(1) as executor:
            loop = executor.submit(run_in_loop)
            for _ in range(STALLS):
                time.sleep(0.5)
                with suspended(bridge.process.pid):
                    time.sleep(2)
            ended = True
            loop.result()
        records = bridge.wait(lambda records: len(exits(records, id_)) >= len(statuses), f"{len(statuses)} exits", 60)
    published = exits(records, id_)
    assert len({each["container"]["incarnation"] for each in published}) == len(published) == len(statuses)
    for status, each in zip(statuses, published, strict=True):
        assert each["exit"]["status"] in (None, status)
    check_stream(records)
