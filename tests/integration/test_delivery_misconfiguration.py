"""`whalebridge run` with unusable sinks or state_dir: a one-line error, the right exit status, and no loss."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, assert_one_line, whalebridge
from tests.integration.delivery import BrokerTargets, deduplicated_records, read_stream
from tests.integration.engines import one_engine
from tests.naming import assert_names
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

_numbers = itertools.count()


def run_without_containerd(directory: Path, state_dir: Path) -> tuple[str, ...]:
    """Return arguments without a containerd: the state directory is checked first."""
    return ("run", "--containerd", str(directory / "no.sock"), "--log-level", "error", "--state-dir", str(state_dir))


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
        bridge.kill()
        bridge.start()
        bridge.wait_logged("containerd_unavailable", 2)
        assert bridge.log_lines("outbox_open_failed") == []


@one_engine
def test_compacted_event_topic_holds_up_only_its_sink(
    engine: Containerd, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    """The failed sink is shown, and tried again at a reload; its records stay in the outbox."""
    targets = BrokerTargets(kafka, nats)
    kafka.admin.create_topic(targets.topic, settings={"cleanup.policy": "compact"})
    with targets.bridge(engine, tmp_path, "--namespace", "unused") as bridge:
        (line,) = bridge.wait_logged("sink_failed")
        assert (line["sink"], line["level"]) == ("kafka", "error")
        assert_names(line["error"], f"topic {targets.topic}", "cleanup.policy=compact")
        eventually(lambda: len(targets.nats_values()) == 2, "the snapshot in NATS")
        bridge.stop()  # within the deadline, although the sink has a backlog
        bridge.start()
        bridge.wait_logged("sink_failed", 2)
        kafka.admin.alter_topic(targets.topic, {"cleanup.policy": "delete"})
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_logged("settings_reloaded")
        eventually(
            lambda: (
                len(values := deduplicated_records(targets.kafka_values())) >= 6
                and values == deduplicated_records(targets.nats_values())
            ),
            "identical records at both brokers",
        )
        assert "Traceback" not in bridge.log.read_text()
    targets.complete_records()


def stream_values(nats: Nats, stream: str) -> list[bytes]:
    return [each.data for each in read_stream(nats, stream)]


@one_engine
def test_reader_that_is_gone_holds_up_no_other_sink(engine: Containerd, nats: Nats, tmp_path: Path) -> None:
    subject = f"gone{os.getpid()}x{next(_numbers)}"
    state = tmp_path / "state"
    command = [*WHALEBRIDGE, "run", "--containerd", engine.address, "--namespace", "unused", "--state-dir", str(state)]
    command += ["--sink", "stdout:", "--sink", f"{nats.url}/{subject}"]
    log = tmp_path / "log.jsonl"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=ENVIRONMENT) as process,
    ):
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        eventually(lambda: b'"sink_disconnected"' in log.read_bytes(), "the log line")
        count = len(stream_values(nats, f"WHALEBRIDGE_{subject.upper()}"))
        whalebridge("snapshot", "--state-dir", str(state))
        eventually(lambda: len(stream_values(nats, f"WHALEBRIDGE_{subject.upper()}")) >= count + 2, "a snapshot")
        process.terminate()
        assert process.wait(30) == 0


@one_engine
def test_fault_31_topic_or_stream_is_missing(engine: Containerd, kafka: Kafka, nats: Nats, tmp_path: Path) -> None:
    targets = BrokerTargets(kafka, nats)
    state, flags = tmp_path / "state", ("--namespace", "unused")

    def environment(auto_create: str) -> Mapping[str, str]:
        return targets.environment(KAFKA__AUTO_CREATE=auto_create, NATS__STREAM__AUTO_CREATE=auto_create)

    with BridgeProcess(engine.address, tmp_path, *flags, state_dir=state, environment=environment("false")) as bridge:
        bridge.wait_logged("synced")
        missing = {
            "kafka": f"kafka-topics.sh --create --topic {targets.topic}",
            "nats": targets.stream,
        }

        def is_logged(sink: str) -> bool:
            """Return whether the error is logged; others may precede it."""
            lines = bridge.log_lines("sink_publish_failed")
            return any(line["sink"] == sink and missing[sink] in line["error"] for line in lines)

        eventually(lambda: all(map(is_logged, missing)), "the errors in the log")
        kafka.admin.create_topic(targets.topic)
        eventually(lambda: len(targets.kafka_values()) == 2, "the snapshot in Kafka")
    with BridgeProcess(engine.address, tmp_path, *flags, state_dir=state, environment=environment("true")):
        eventually(lambda: len(targets.kafka_values()) == 4, "the second snapshot")
        eventually(lambda: len(deduplicated_records(targets.nats_values())) == 4, "all records in NATS")
    assert targets.kafka_values() == targets.nats_values()
    targets.complete_records()
