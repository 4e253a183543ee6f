"""Filters, additional events, heartbeats, and the settings reload on SIGHUP, with the real program and containerd."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.bridge_process import BridgeProcess, RecordDict, check_stream, transitions
from tests.eventually import eventually
from tests.integration.commands import ContainerFactory
from tests.integration.engines import one_engine, one_engine_factory
from tests.integration.http_client import LOCAL, HttpClient
from tests.integration.test_records import unique_id
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

ADDITIONAL_EVENTS = {"WHALEBRIDGE_CONTAINERS__ADDITIONAL_EVENTS": "created,deleted,renamed"}


def records_about(records: list[RecordDict], id_: str) -> list[RecordDict]:
    return [each for each in records if each["container"] and each["container"]["id"] == id_]


def types_about(records: list[RecordDict], id_: str) -> list[str]:
    return [each["type"] for each in records_about(records, id_)]


def test_additional_events_are_published_on_request(engine: Containerd, tmp_path: Path) -> None:
    name = unique_id(engine, "additional")
    with BridgeProcess(engine.address, tmp_path, environment=ADDITIONAL_EVENTS) as bridge:
        bridge.wait_synced()
        run = ("run", "-d", "--pull=never", "--net=host", f"--name={name}", "busybox:latest", "sleep", "86400")
        id_ = engine.nerdctl(*run).stdout.strip()
        bridge.wait(lambda records: "started" in types_about(records, id_), "start")
        engine.nerdctl("rename", name, f"{name}-new")
        bridge.wait(lambda records: "renamed" in types_about(records, id_), "new name")
        engine.nerdctl("rm", "-f", id_)
        records = bridge.wait(lambda records: "deleted" in types_about(records, id_), "deletion")
    published = records_about(records, id_)
    assert [(each["type"], each["origin"]) for each in published if each["type"] != "exited"] == [
        ("created", "live"),
        ("started", "live"),
        ("renamed", "live"),
        ("deleted", "live"),
    ]
    created, started, renamed = published[:3]
    assert (created["container"]["pid"], created["container"]["incarnation"]) == (0, "")
    assert renamed["container"]["incarnation"] == started["container"]["incarnation"]
    assert [each["container"]["name"] for each in (created, renamed, published[-1])] == [
        name,
        f"{name}-new",
        f"{name}-new",
    ]


def test_additional_events_are_inferred_after_bridge_was_down(engine: Containerd, tmp_path: Path) -> None:
    removed, new, stays = (unique_id(engine, stem) for stem in ("removed", "new", "stays"))
    bridge = BridgeProcess(engine.address, tmp_path, state_dir=tmp_path / "state", environment=ADDITIONAL_EVENTS)
    with bridge:
        bridge.wait_synced()
        for id_ in (removed, stays):
            engine.ctr("container", "create", IMAGE, id_, "true")
        bridge.wait(
            lambda records: types_about(records, removed) == types_about(records, stays) == ["created"], "creations"
        )
    engine.ctr("container", "rm", removed)
    engine.ctr("container", "create", IMAGE, new, "true")
    with bridge:
        records = bridge.wait_synced(2)
    engine.ctr("container", "rm", new)
    engine.ctr("container", "rm", stays)
    assert [(each["type"], each["origin"]) for each in records_about(records, removed)][1:] == [("deleted", "inferred")]
    assert [(each["type"], each["origin"]) for each in records_about(records, new)] == [("created", "inferred")]
    assert types_about(records, stays) == ["created"]


@one_engine
def test_filter_matches_unpublished_label(engine: Containerd, tmp_path: Path) -> None:
    selected, other = unique_id(engine, "selected"), unique_id(engine, "other")
    environment = {"WHALEBRIDGE_CONTAINERS__LABELS__INCLUDE": "tier=fr*", "WHALEBRIDGE_LABELS__EXCLUDE": "tier"}
    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_synced()
        engine.run(other, "sleep", "86400", labels={"tier": "back"})
        engine.run(selected, "sleep", "86400", labels={"tier": "front"})
        records = bridge.wait(lambda records: types_about(records, selected), "start")
    assert types_about(records, other) == []
    assert "tier" not in records_about(records, selected)[0]["container"]["labels"]
    check_stream(records)


@one_engine_factory
def test_heartbeat_timestamp_stalls_when_containerd_hangs(
    engine_factory: Callable[[], Containerd], tmp_path: Path
) -> None:
    engine = engine_factory()
    environment = {
        "WHALEBRIDGE_SINKS__STDOUT__TYPE": "stdout",
        "WHALEBRIDGE_SINKS__STDOUT__HEARTBEATS": "true",
        "WHALEBRIDGE_HEARTBEAT__INTERVAL": "1s",
    }

    def heartbeats(records: list[RecordDict]) -> list[RecordDict]:
        return [each for each in records if each["type"] == "heartbeat"]

    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_synced()
        records = bridge.wait(
            lambda records: len({each["timestamp"] for each in heartbeats(records)}) > 1, "advancing heartbeats"
        )
        assert {each["sequence"] for each in heartbeats(records)} == {2}, "the position of the snapshot"
        engine.suspend()
        count = len(heartbeats(bridge.records())) + 3  # the last marker may not be processed yet
        records = bridge.wait(lambda records: len(heartbeats(records)) > count + 10, "heartbeats", 60)
        engine.resume()
    # As long as the interval of markers, of which each would advance the timestamp.
    assert len({each["timestamp"] for each in heartbeats(records)[count:]}) == 1


def file_records(path: Path) -> list[RecordDict]:
    """Return the records in a file: complete lines, without duplicates."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(each) for each in dict.fromkeys(lines)]


def snapshots(records: list[RecordDict]) -> list[tuple[str, int]]:
    """Return the reasons and the numbers of containers of the complete snapshots."""
    bodies = [each["snapshot"] for each in records if each["type"] == "snapshot_completed"]
    return [(each["reason"], each["containers"]) for each in bodies]


@one_engine
def test_sighup_reloads_filters_and_sinks(engine: Containerd, tmp_path: Path) -> None:
    """Invalid settings change nothing; then the filters change, and then the path of the sink."""
    excluded, kept, added = (unique_id(engine, stem) for stem in ("excluded", "kept", "added"))
    for id_ in (excluded, kept, added):
        engine.run(id_, "sleep", "86400")
    config, path, other_path = (tmp_path / name for name in ("whalebridge.yaml", "records", "other"))

    def write_settings(names: list[str], path: Path, *, heartbeats: bool, **more: object) -> None:
        sink = {"type": "file", "path": str(path), "heartbeats": heartbeats}
        settings = {"containers": {"names": {"include": names}}, "sinks": {"f": sink}, "heartbeat": {"interval": "1s"}}
        config.write_text(msgspec.json.encode(settings | more).decode())

    write_settings([excluded, kept], path, heartbeats=False)
    with BridgeProcess(engine.address, tmp_path, "--config", str(config)) as bridge:

        def reload(times: int) -> RecordDict:
            bridge.process.send_signal(signal.SIGHUP)
            return bridge.wait_logged("settings_reloaded", times)[-1]

        eventually(lambda: snapshots(file_records(path)) == [("start", 2)], "the first snapshot")
        config.write_text("containers: {nmes: 5}\nlog: {level: loud}\n")
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_logged("settings_reload_failed", 2)
        write_settings([added, kept], path, heartbeats=True, host="other")
        assert reload(1)["changed"] == ["containers.names.include", "sinks.f.heartbeats"]
        eventually(lambda: snapshots(file_records(path))[1:] == [("filters_changed", 2)], "the second snapshot")
        for id_ in (excluded, added):
            engine.ctr("task", "kill", "-s", "SIGKILL", id_)
        eventually(lambda: "exited" in types_about(file_records(path), added), "the exit")
        eventually(lambda: any(each["type"] == "heartbeat" for each in file_records(path)), "a heartbeat")
        write_settings([added, kept], other_path, heartbeats=True)
        reload(2)
        eventually(lambda: ("on_demand", 1) in snapshots(file_records(other_path)), "the snapshot at the new path")
    records = [each for each in file_records(path) if each["type"] != "heartbeat"]
    assert types_about(records, excluded) == ["present"]
    assert types_about(records, kept) == ["present"] * 2
    assert types_about(records, added) == ["present", "exited"]
    assert {each["host"] for each in records} == {"node-1"}, "the host changes only at a start"
    check_stream(records)


@one_engine
def test_config_map_update_reloads_filters(engine: Containerd, tmp_path: Path) -> None:
    excluded, kept = (unique_id(engine, stem) for stem in ("omitted", "remaining"))
    for id_ in (excluded, kept):
        engine.run(id_, "sleep", "86400")
    volume = tmp_path / "volume"
    (volume / "..1").mkdir(parents=True)
    (volume / "..data").symlink_to("..1")
    (volume / "config.yaml").symlink_to("..data/config.yaml")

    def update(name: str, include: str) -> None:
        """Change the volume as the kubelet does."""
        (volume / name).mkdir(exist_ok=True)
        (volume / name / "config.yaml").write_text(f"containers: {{names: {{include: [{include}]}}}}\n")
        (volume / "..data_tmp").symlink_to(name)
        (volume / "..data_tmp").rename(volume / "..data")

    update("..1", f"{excluded}, {kept}")
    environment = {"WHALEBRIDGE_RELOAD_ON_CHANGE": "true"}
    arguments = ("--config", str(volume / "config.yaml"))
    with BridgeProcess(engine.address, tmp_path, *arguments, environment=environment) as bridge:
        bridge.wait_synced()
        update("..2", kept)
        assert bridge.wait_logged("settings_reloaded")[-1]["changed"] == ["containers.names.include"]
        bridge.wait(lambda records: snapshots(records) == [("start", 2), ("filters_changed", 1)], "the second snapshot")


@one_engine
def test_bridge_warns_until_a_namespace_matches(
    engine: Containerd, container_factory: ContainerFactory, tmp_path: Path
) -> None:
    first, second = (unique_id(engine, stem) for stem in ("first", "second"))
    with BridgeProcess(engine.address, tmp_path, f"--namespace={first},{second}", environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        (line,) = bridge.wait_logged("no_namespace_matches")
        assert line["level"] == "warning"
        assert line["existing"]
        assert not {first, second} & {*line["existing"]}
        assert client.get("/readyz").document["degraded"]
        ids = {container_factory.run(second), container_factory.run(first)}
        bridge.wait(lambda records: {each["container"]["id"] for each in transitions(records)} == ids, "both starts")
        assert not client.get("/readyz").document["degraded"]
