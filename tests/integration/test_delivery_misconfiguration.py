"""`whalebridge run` with sinks and a state_dir that cannot be: one clear line, the right status, and nothing lost."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import assert_one_line, whalebridge
from tests.integration.delivery import BrokerTargets, check_gapless, deduplicated_records
from tests.naming import assert_names
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

_numbers = itertools.count()
one_engine = pytest.mark.parametrize("engine", ["2.4"], indirect=True)


def run_without_containerd(directory: Path, state_dir: Path) -> tuple[str, ...]:
    """For a containerd that is not there: the state_dir comes first."""
    return ("run", "--containerd", str(directory / "no.sock"), "--log-level", "error", "--state-dir", str(state_dir))


def test_run_exits_1_when_state_dir_is_unusable(tmp_path: Path) -> None:
    below_a_file = tmp_path / "file"
    below_a_file.write_text("")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letters.txt").write_text("mine")
    foreign_file = tmp_path / "foreign-file"
    foreign_file.mkdir()
    with sqlite3.connect(foreign_file / "outbox.db") as database:
        database.execute("CREATE TABLE letters (content)")
    database.close()
    for path, *named in (
        (below_a_file, "Not a directory"),
        (below_a_file / "state", "Not a directory"),
        (Path("/proc/whalebridge"), "state_dir"),
        (Path("/sys/whalebridge"), "state_dir"),
        (foreign, "state_dir"),
        (foreign_file, "outbox.db", "state_dir"),
    ):
        assert_one_line(whalebridge(*run_without_containerd(tmp_path, path)), 1, str(path), *named)
    assert [path.name for path in foreign.iterdir()] == ["letters.txt"]


def test_run_leaves_outbox_of_newer_version_untouched(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with BridgeProcess(str(tmp_path / "no.sock"), tmp_path, state_dir=state) as bridge:
        bridge.wait_logged("containerd_unavailable")
    with sqlite3.connect(state / "outbox.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = (state / "outbox.db").read_bytes()
    done = whalebridge(*run_without_containerd(tmp_path, state))
    assert_one_line(done, 1, f"{state}/outbox.db", "99")
    assert (state / "outbox.db").read_bytes() == before


def test_state_dir_lock_is_released_when_bridge_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with BridgeProcess(str(tmp_path / "no.sock"), tmp_path, state_dir=state) as bridge:
        bridge.wait_logged("containerd_unavailable")
        done = whalebridge(*run_without_containerd(tmp_path, state))
        assert_one_line(done, 1, f"state_dir {state} ", f"process {bridge.process.pid}")
        bridge.kill()
        bridge.start()
        bridge.wait_logged("containerd_unavailable", 2)


@one_engine
def test_run_exits_1_without_loss_when_event_topic_is_compacted(
    engine: Containerd, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    places = BrokerTargets(kafka, nats)
    kafka.admin.create_topic(places.topic, settings={"cleanup.policy": "compact"})
    with places.bridge(engine, tmp_path, "--namespace", "nobody") as bridge:
        assert bridge.process.wait(60) == 1  # not 3: there is a connection, and somebody has to change the topic
        last = bridge.log.read_text().splitlines()[-1]
        assert last.startswith("whalebridge: "), last
        assert_names(last, f"topic {places.topic}", "cleanup.policy=compact")
        assert "Traceback" not in bridge.log.read_text()
        bridge.log.write_text("")
        kafka.admin.alter_topic(places.topic, {"cleanup.policy": "delete"})
        bridge.start()
        bridge.wait_logged("synced")
        eventually(
            lambda: deduplicated_records(places.kafka_values()) == deduplicated_records(places.nats_values()) != [],
            "all in both",
        )
    for values in (places.kafka_values(), places.nats_values()):
        check_gapless(deduplicated_records(values))
    assert deduplicated_records(places.kafka_values()) == deduplicated_records(places.nats_values())


@one_engine
def test_run_logs_and_waits_when_topic_or_stream_is_missing(
    engine: Containerd, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    places = BrokerTargets(kafka, nats)
    state, flags = tmp_path / "state", ("--namespace", "nobody")

    def creating(value: str) -> Mapping[str, str]:
        kafka_at, nats_at = (url.partition("//")[2].partition("/")[0] for url in places.urls)
        to_kafka = {"TYPE": "kafka", "BOOTSTRAP_SERVERS": kafka_at, "TOPIC": places.topic, "AUTO_CREATE": value}
        to_nats = {"TYPE": "nats", "SERVERS": nats_at, "SUBJECT_PREFIX": places.topic, "STREAM__AUTO_CREATE": value}
        return {
            f"WHALEBRIDGE_SINKS__{sink['TYPE'].upper()}__{name}": text
            for sink in (to_kafka, to_nats)
            for name, text in sink.items()
        }

    with BridgeProcess(engine.address, tmp_path, *flags, state_dir=state, environment=creating("false")) as bridge:
        bridge.wait_logged("synced")
        missing = {
            "kafka": f"kafka-topics.sh --create --topic {places.topic}",
            "nats": places.stream,
        }

        def told(sink: str) -> bool:
            """Perhaps not at once: something else may be in the way before."""
            lines = bridge.log_lines("sink_publish_failed")
            return any(line["sink"] == sink and missing[sink] in line["error"] for line in lines)

        eventually(lambda: all(map(told, missing)), "the complaints")
        kafka.admin.create_topic(places.topic)
        eventually(lambda: len(places.kafka_values()) == 2, "the snapshot in Kafka")
    with BridgeProcess(engine.address, tmp_path, *flags, state_dir=state, environment=creating("true")):
        eventually(lambda: len(places.kafka_values()) == 4, "the second snapshot")
        eventually(lambda: len(deduplicated_records(places.nats_values())) == 4, "all of it in NATS")
    assert places.kafka_values() == places.nats_values()
    check_gapless(deduplicated_records(places.nats_values()))
