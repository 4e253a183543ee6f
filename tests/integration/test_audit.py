"""`whalebridge audit` on what a bridge has published to real brokers and a file, with kills and restarts in between."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.integration.commands import whalebridge
from tests.integration.delivery import BrokerTargets, ContainerChurn, wait_consistent
from tests.integration.engines import one_engine
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.unit.consumer import defects
from tests.unit.consumer.defects import RecordedTopic
from tests.unit.consumer.test_audit import audit

pytestmark = one_engine

DEFECTS = scaled(reduced=300, full=10_000)


@pytest.fixture
def churn(engine: Containerd) -> Iterator[ContainerChurn]:
    churn = ContainerChurn(engine, f"audit{os.getpid()}")
    yield churn
    churn.remove_all()


def test_real_topics_hold_and_every_defect_in_them_is_found(
    engine: Containerd, churn: ContainerChurn, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    targets = BrokerTargets(kafka, nats)
    flags = ("--namespace", churn.namespace)
    with targets.bridge(engine, tmp_path, *flags, environment={"WHALEBRIDGE_HEARTBEAT__INTERVAL": "1s"}) as bridge:
        bridge.wait_logged("synced")
        for number in range(36):
            churn.step()
            if number in (12, 24):
                bridge.kill()
                churn.step()
                bridge.start()
        wait_consistent(targets.kafka_values, engine, churn.namespace)
    for url in targets.urls:
        process = whalebridge("audit", url, "--json")
        report = json.loads(process.stdout)
        assert (process.returncode, report["findings"], report["holds"]) == (0, [], True)
        assert report["records"] > 20
    recorded = RecordedTopic([each.value or b"" for each in kafka.admin.records(targets.topic)])
    assert audit(recorded.topic).findings == []
    chance, injected = Random(5), Counter[str]()  # noqa: S311
    while sum(injected.values()) < DEFECTS:
        for inject in defects.KINDS:
            for damaged, (_, _, epoch, sequence), kinds in inject(recorded, chance):
                found = audit(damaged).findings
                assert any(
                    each.kind in kinds and each.epoch == epoch and each.first <= sequence <= each.last for each in found
                ), f"{inject.__name__} at {epoch}-{sequence}"
                injected[inject.__name__] += 1
    assert {"remove", "alter", "swap", "bend_incarnation", "bend_cycle", "move_epoch", "miscount"} <= set(injected)
    path = tmp_path / "damaged.jsonl"
    (damaged, (*_, sequence), _) = next(defects.remove(recorded, chance))
    path.write_bytes(b"".join(each + b"\n" for each in damaged))
    process = whalebridge("audit", f"file:{path}")
    assert process.returncode == 1
    assert f"sequence {sequence}: not there" in process.stdout
    assert process.stdout.endswith(": 1 defect\n")
