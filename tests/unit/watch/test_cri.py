"""CRI's records of exits in the watch: after a gap, live, at the audit, and with a CRI that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import cri_pb2
from bridge.core.containerd_model import ContainerKey
from bridge.core.errors import UnreadableError
from bridge.core.label_rules import LabelRules
from bridge.core.record_encoder import rfc3339
from bridge.core.time import to_seconds
from bridge.watch import cri
from tests.simulator.state import SimulatedRpcError
from tests.unit.watch.fakes import HookedClient, RunningWatch, running_watch, settings, synced_watch

WEB = ContainerKey("k8s.io", "web")
JOB = ContainerKey("k8s.io", "job")
OTHER, LATER = ContainerKey("k8s.io", "other"), ContainerKey("k8s.io", "later")
UNKNOWN = (None, None)
UNAVAILABLE = SimulatedRpcError(StatusCode.UNAVAILABLE, "server is not initialized yet")
DENIED = SimulatedRpcError(StatusCode.PERMISSION_DENIED, "whalebridge's read-only proxy does not allow this call")
LIST, STATUS = "RuntimeService.ListContainers", "RuntimeService.ContainerStatus"
PODS = "RuntimeService.ListPodSandbox"
POD_LABELS = {"io.kubernetes.pod.uid": "uid-1", "app": "shop"}


def kubernetes_client() -> HookedClient:
    """Return a client of a containerd with CRI and a running container of a pod."""
    client = HookedClient()
    client.state.has_cri = True
    client.state.create_unseen(WEB)
    client.state.create_task(WEB)
    client.state.start(WEB)
    return client


def end_unseen(client: HookedClient, key: ContainerKey, status: int, *, oom: bool = False) -> None:
    """End a container unseen, also by calls that wait for its exit; CRI deletes its task."""
    recorded = client.state.container(key).cri_status
    recorded.state, recorded.exit_code, recorded.finished_at = cri_pb2.CONTAINER_EXITED, status, client.clock.now().wall
    recorded.reason = b"OOMKilled" if oom else b""
    client.remove_task(key)


async def reconnect(running: RunningWatch, snapshots: int = 2) -> None:
    running.client.stream.end()
    await running.wait_synced(snapshots)


def ends(running: RunningWatch) -> list[tuple[str, Any]]:
    """Id, and status and OOM kill, of the published exits."""
    exits = [each for each in running.documents if each["type"] == "exited"]
    return [(each["container"]["id"], (each["exit"]["status"], each["exit"]["oom"])) for each in exits]


@pytest.mark.parametrize("oom", [False, True])
async def test_exit_in_gap_gets_status_from_cri(oom: bool) -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        client.stream.held = True
        end_unseen(client, WEB, 137, oom=oom)
        await reconnect(running)
    assert ends(running) == [("web", (137, oom or None))]
    assert running.watch.event_counts["cri_exit"] == 1


async def test_run_within_gap_is_published_from_cri() -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        await asyncio.sleep(100)
        client.state.run_unseen(JOB, 3, seconds=5)
        await reconnect(running)
        start, end = [each for each in running.documents if each["id"] == "k8s.io/job"]
    assert [(each["type"], each["origin"]) for each in (start, end)] == [
        ("started", "inferred"),
        ("exited", "inferred"),
    ]
    assert start["start"]["at"] < end["exit"]["at"] <= start["timestamp"]
    assert end["exit"] == {"status": 3, "at": end["exit"]["at"], "oom": None}
    assert (start["container"]["pid"], start["container"]["pod"]["name"]) == (0, "web-0")
    assert start["container"]["incarnation"] == end["container"]["incarnation"]
    assert client.calls["recorded_exit"] == 1


async def test_baseline_requests_no_records() -> None:
    client = kubernetes_client()
    client.state.run_unseen(JOB)
    async with synced_watch(client, first_audit_delay=30, audit_interval=30) as running:
        await asyncio.sleep(100)
        assert client.calls["exited_containers"] == 4
    assert running.transitions == [("present", "snapshot", "k8s.io/web")]
    assert client.calls["recorded_exit"] == 0


@pytest.mark.parametrize("fault", ["not initialized", "hung", "off"])
async def test_exits_of_first_response_are_from_before_the_bridge(fault: str) -> None:
    client = kubernetes_client()
    client.state.run_unseen(JOB, 3)
    if fault == "not initialized":
        client.faults.errors[LIST, ""] = UNAVAILABLE
    elif fault == "hung":
        client.faults.hang(LIST)
    async with synced_watch(client, first_audit_delay=30, uses_cri=fault != "off") as running:
        client.faults.errors.clear()
        client.faults.release()
        await asyncio.sleep(100)
        checkpoint = dict(running.outbox.checkpoint)
    client.state.run_unseen(ContainerKey("k8s.io", "next"), 4)  # also with an earlier version, this one is new
    async with running_watch(client, checkpoint) as restarted:
        await restarted.wait_synced()
        client.state.run_unseen(ContainerKey("k8s.io", "last"), 5)
        await reconnect(restarted)
    assert ends(running) == []
    assert ends(restarted) == [("next", (4, None)), ("last", (5, None))]


async def test_exits_that_an_earlier_version_forgot_are_not_repeated() -> None:
    client = kubernetes_client()
    async with synced_watch(client, uses_cri=False) as running:
        client.state.exit(WEB, 1)
        client.state.delete_task(WEB)
        await running.eventually(lambda: ends(running))
        checkpoint = dict(running.outbox.checkpoint)
    checkpoint = {key: value for key, value in checkpoint.items() if not key.startswith("state")}  # after a reboot
    async with running_watch(client, checkpoint) as restarted:
        await restarted.wait_synced()
    assert ends(restarted) == []


async def test_restart_publishes_run_once_after_kill() -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
    client.state.run_unseen(JOB, 4)
    published = []
    for _ in range(2):  # the process is killed before the first snapshot is persisted
        async with running_watch(client, checkpoint) as restarted:
            await restarted.wait_synced()
            after = dict(restarted.outbox.checkpoint)
        published.append([each["container"]["incarnation"] for each in restarted.documents if each["type"] == "exited"])
    assert published[0] == published[1] != []
    async with running_watch(client, after) as last:
        await last.wait_synced()
    assert last.transitions == [("present", "snapshot", "k8s.io/web")]


@pytest.mark.parametrize(
    ("changed", "published"),
    [
        ({"filter_fingerprint": "2", "selection_fingerprint": "", "label_rules": LabelRules((), (), ())}, True),
        ({"filter_fingerprint": "2"}, False),
    ],
)
async def test_change_of_label_rules_hides_no_run_in_gap(changed: dict[str, Any], published: bool) -> None:
    """Label rules select no containers; other filters may have excluded the run."""
    client, plain = kubernetes_client(), ContainerKey("default", "plain")
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
    client.state.run_unseen(JOB, 4)
    client.state.run(plain)
    client.rules = changed.get("label_rules", client.rules)
    for number in range(2):
        async with running_watch(client, checkpoint, **changed) as restarted:
            await restarted.wait_synced()
            checkpoint = dict(restarted.outbox.checkpoint)
        if number == 0:
            assert ends(restarted) == ([("job", (4, None))] if published else [])
            assert (("started", "inferred", "plain") in restarted.transitions) is published
            assert [each["container"]["labels"] for each in restarted.documents if each["id"] == "k8s.io/web"] == (
                [{}] if published else [client.state.container(WEB).labels]
            )
    assert ends(restarted) == []


async def test_reboot_does_not_repeat_ended_runs() -> None:
    client, bare = kubernetes_client(), ContainerKey("k8s.io", "without-pod")
    client.state.run(bare, {"io.cri-containerd.kind": "container"})
    async with synced_watch(client) as running:
        client.state.exit(bare, 1)
        client.state.delete_task(bare)
        await running.eventually(lambda: ends(running))
        checkpoint = dict(running.outbox.checkpoint)
    client.state.create_unseen(JOB)
    end_unseen(client, WEB, 255)
    for _ in range(2):
        async with running_watch(client, checkpoint, boot_id="0b2d4c6e-0000") as rebooted:
            await rebooted.wait_synced()
            checkpoint = dict(rebooted.outbox.checkpoint)
            client.state.run_unseen(JOB, 1)
            await reconnect(rebooted)
            checkpoint = dict(rebooted.outbox.checkpoint)
        exits = [each[0] for each in ends(rebooted) if each[0] != "job"]
        assert exits in (["web"], [])
    assert ends(rebooted) == []


async def test_reboot_does_not_hide_later_runs_of_other_containers() -> None:
    client, other = kubernetes_client(), ContainerKey("k8s.io", "nerdctl")
    client.state.run(other)
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
    client.remove_task(other)
    async with running_watch(client, checkpoint, boot_id="0b2d4c6e-0000") as rebooted:
        await rebooted.wait_synced()
        await asyncio.sleep(10)
        client.stream.held = True
        client.state.create_task(other)  # CRI does not know the container, which runs again under its id
        client.state.start(other)
        client.state.exit(other, 3)
        await reconnect(rebooted)
        client.remove_task(other)
        await asyncio.sleep(10)
        client.state.create_task(other)
        client.state.start(other)
        await rebooted.eventually(lambda: ("started", "live", "k8s.io/nerdctl") in rebooted.transitions)
    assert ends(rebooted)[-1] == ("nerdctl", (3, None))


@pytest.mark.parametrize("cri", ["responds", "fails"])
async def test_container_that_ended_before_a_reboot_has_its_status(cri: str) -> None:
    """CRI makes up the end of a container that the reboot has ended."""
    client = kubernetes_client()
    for key in (JOB, OTHER):
        client.state.run(key, client.state.container(WEB).labels)
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
        incarnations = {each["container"]["incarnation"] for each in running.documents if each["type"] == "present"}
    end_unseen(client, WEB, 137, oom=True)
    end_unseen(client, JOB, 0)
    end_unseen(client, OTHER, 255)
    client.state.container(OTHER).cri_status.reason = b"Unknown"
    client.state.run_unseen(LATER, 4)
    if cri == "fails":
        client.faults.errors[LIST, ""] = DENIED
    async with running_watch(client, checkpoint, boot_id="0b2d4c6e-0000") as rebooted:
        await rebooted.wait_synced()
    known = [("web", (137, True)), ("job", (0, None))] if cri == "responds" else [("web", UNKNOWN), ("job", UNKNOWN)]
    in_gap = [("later", (4, None))] if cri == "responds" else []
    assert sorted(ends(rebooted)) == sorted([*known, ("other", UNKNOWN), *in_gap])
    exited = {each["container"]["incarnation"] for each in rebooted.documents if each["type"] == "exited"}
    assert incarnations <= exited


async def test_late_exit_from_before_a_reboot_is_not_a_run() -> None:
    client = kubernetes_client()
    pid = client.state.task(WEB).pid
    async with synced_watch(client) as running:
        checkpoint = dict(running.outbox.checkpoint)
    end_unseen(client, WEB, 255)
    client.state.container(WEB).cri_status.reason = b"Unknown"
    async with running_watch(client, checkpoint, boot_id="0b2d4c6e-0000") as rebooted:
        await rebooted.wait_synced()
        client.state.publish_exit(WEB, pid, 137)  # containerd cleans up after a shim that is gone
        await asyncio.sleep(100)
    assert ends(rebooted) == [("web", (None, None))]


async def test_lost_exit_event_gets_oom_from_cri_while_live() -> None:
    client = kubernetes_client()
    client.state.dropped_topics = {"/tasks/exit", "/tasks/oom", "/tasks/delete"}
    async with synced_watch(client) as running:
        client.state.oom(WEB)
        client.state.exit(WEB, 137)
        client.state.delete_task(WEB)
        await running.eventually(lambda: ends(running))
    assert ends(running) == [("web", (137, True))]


@pytest.mark.parametrize(("reason", "oom"), [(b"OOMKilled", True), (b"Error", None)])
async def test_killed_container_gets_oom_from_cri_if_event_is_lost(reason: bytes, oom: bool | None) -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        client.state.container(WEB).cri_status.reason = reason
        client.state.exit(WEB, 137)
        client.state.delete_task(WEB)
        await running.eventually(lambda: ends(running))
        client.state.publish_exit(WEB, 10_000, 137)
        await asyncio.sleep(60)
    assert ends(running) == [("web", (137, oom))]
    assert running.transitions[1:] == [("exited", "live", "k8s.io/web")]


async def test_killed_container_is_published_if_cri_hangs() -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        client.faults.hang(STATUS)
        begin = running.clock.now().monotonic
        client.state.exit(WEB, 137)
        await running.eventually(lambda: ends(running))
        assert to_seconds(running.clock.now().monotonic - begin) <= cri.CALL_SECONDS + 1
    assert ends(running) == [("web", (137, None))]


async def test_held_exit_is_published_at_shutdown_while_cri_hangs() -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        client.faults.hang(STATUS)
        client.state.exit(WEB, 137)
        await running.eventually(lambda: client.calls["recorded_exit"])
    assert ends(running) == [("web", (137, None))]


@pytest.mark.parametrize("cri", ["responds", "fails"])
async def test_run_gets_time_of_start_from_cri_if_only_its_exit_arrives(cri: str) -> None:
    """The exit is on its way while the gap ends, and CRI has not processed it itself."""
    client = kubernetes_client()
    async with synced_watch(client) as running:
        client.state.create_unseen(JOB)
        status = client.state.container(JOB).cri_status
        status.state, status.started_at = cri_pb2.CONTAINER_RUNNING, client.clock.now().wall
        await reconnect(running)
        await asyncio.sleep(3)
        status.state, status.finished_at = cri_pb2.CONTAINER_EXITED, client.clock.now().wall
        if cri == "fails":
            client.faults.errors[STATUS, ""] = DENIED
        client.state.publish_exit(JOB, 10_007, 5)
        await running.eventually(lambda: ends(running))
    start, end = [each for each in running.documents if each["id"] == "k8s.io/job"]
    assert (start["origin"], start["container"]["pid"]) == ("inferred", 10_007)
    assert start["start"]["at"] == (rfc3339(status.started_at) if cri == "responds" else None)
    assert (end["origin"], end["exit"]["status"]) == ("live", 5)


@pytest.mark.parametrize("in_gap", [False, True])
async def test_audit_finds_run_whose_events_were_lost(in_gap: bool) -> None:
    """A run within a gap, which CRI has not returned then, says nothing about its shim."""
    client = kubernetes_client()
    with capture_logs() as logs:
        async with synced_watch(client, first_audit_delay=30) as running:
            if in_gap:
                client.state.run_unseen(JOB, 3)
                client.faults.errors[STATUS, ""] = DENIED
                await reconnect(running)
                client.faults.errors.clear()
            else:
                await asyncio.sleep(5)
                client.state.run_unseen(JOB, 3)
            await running.eventually(lambda: ends(running))
    assert ends(running) == [("job", (3, None))]
    assert running.snapshots()[-1]["reason"] == "audit"
    assert [each["id"] for each in logs if each["event"] == "start_event_missing"] == ([] if in_gap else ["job"])


async def test_audit_publishes_attempts_in_order() -> None:
    client = kubernetes_client()
    *attempts, last = [ContainerKey("k8s.io", id_) for id_ in ("c", "a", "b", "0")]
    async with synced_watch(client, first_audit_delay=30) as running:
        for attempt in attempts:
            await asyncio.sleep(2)
            client.state.run_unseen(attempt)
        client.state.dropped_topics = {"/tasks/create", "/tasks/start"}
        client.state.create_unseen(last)
        client.state.create_task(last)
        client.state.start(last)
        await running.eventually(lambda: ("started", "inferred", "k8s.io/0") in running.transitions)
    starts = [transition[2] for transition in running.transitions if transition[0] == "started"]
    assert starts == ["k8s.io/c", "k8s.io/a", "k8s.io/b", "k8s.io/0"]


async def missed_runs(running: RunningWatch, count: int) -> list[str]:
    """Let a container be restarted in a gap, with ids in no order; return the ids of the attempts."""
    ids = [f"{number * 7919 % count:04}" for number in range(count)]
    for id_ in ids:
        running.client.state.run_unseen(ContainerKey("k8s.io", id_))
        await asyncio.sleep(0.01)
    await reconnect(running)
    return ids


def started_ids(running: RunningWatch) -> list[str]:
    return [each["container"]["id"] for each in running.documents if each["type"] == "started"]


async def test_thousands_of_missed_runs_are_published_in_order() -> None:
    client, last = kubernetes_client(), ContainerKey("k8s.io", "0")
    async with synced_watch(client) as running:
        client.stream.held = True
        client.state.create_unseen(last)
        client.state.create_task(last)
        client.state.start(last)
        client.stream.drain()
        ids = await missed_runs(running, 2500)
    assert started_ids(running) == [*ids, last.id]


async def test_runs_beyond_limit_are_published_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50, CRI's records of 20 are requested with the listing, of 20 with the queries, and of 10 at the audit."""
    monkeypatch.setattr(cri, "MAX_RECORDS", 20)
    client = kubernetes_client()
    async with synced_watch(client, first_audit_delay=30) as running:
        ids = await missed_runs(running, 50)
        assert started_ids(running) == ids[:40]
        await running.eventually(lambda: len(ends(running)) == 50)
    assert started_ids(running) == ids


async def test_watch_waits_for_cri_to_be_initialized() -> None:
    client = kubernetes_client()
    async with synced_watch(client) as running:
        end_unseen(client, WEB, 7)
        client.faults.errors[LIST, ""] = UNAVAILABLE
        asyncio.get_running_loop().call_later(6, client.faults.errors.clear)
        await reconnect(running)
    assert ends(running) == [("web", (7, None))]


async def test_watch_waits_for_cri_also_after_a_status_call_failed() -> None:
    client, next_ = kubernetes_client(), ContainerKey("k8s.io", "next")
    client.state.create_unseen(next_)
    client.state.create_task(next_)
    client.state.start(next_)
    async with synced_watch(client) as running:
        client.faults.hang(STATUS)
        client.state.exit(next_, 137)
        await running.eventually(lambda: ends(running))
        client.faults.release()
        end_unseen(client, WEB, 7)
        client.faults.errors[LIST, ""] = UNAVAILABLE
        asyncio.get_running_loop().call_later(6, client.faults.errors.clear)
        await reconnect(running)
    assert ends(running) == [("next", (137, None)), ("web", (7, None))]


async def test_record_that_cri_fails_to_return_does_not_hide_others() -> None:
    client, broken = kubernetes_client(), ContainerKey("k8s.io", "broken")

    async def fail(key: ContainerKey) -> None:
        if key == broken:
            raise UnreadableError("failed to get image")

    client.hooks["recorded_exit"] = fail
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            client.state.run_unseen(broken)
            await asyncio.sleep(1)
            for number in range(50):
                client.state.run_unseen(ContainerKey("k8s.io", f"job-{number}"), 1)
            await reconnect(running)
            end_unseen(client, WEB, 7)
            await reconnect(running, 3)
    assert len(ends(running)) == 51
    assert ends(running)[-1] == ("web", (7, None))
    assert {each["event"] for each in logs if each["event"].startswith("cri_")} == {"cri_record_unavailable"}


def jobs(count: int) -> list[ContainerKey]:
    return [ContainerKey("k8s.io", f"job-{number}") for number in range(count)]


def cri_events(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["event"] for each in logs if each["event"].startswith("cri_")]


@pytest.mark.parametrize("count", [1, 4])
async def test_containers_whose_status_hangs_cost_only_themselves(count: int) -> None:
    client, bad = kubernetes_client(), jobs(count)
    good = [ContainerKey("k8s.io", f"good-{number}") for number in range(30)]
    with capture_logs() as logs:
        async with synced_watch(client, first_audit_delay=30, audit_interval=30) as running:
            client.faults.hung_records.update(bad)
            for key in bad + good:
                client.state.run_unseen(key, 1)
            begin = running.clock.now().monotonic
            await reconnect(running)
            assert to_seconds(running.clock.now().monotonic - begin) <= cri.CALL_SECONDS + 2
            assert ends(running) == [(key.id, (1, None)) for key in good]
            client.state.container(WEB).cri_status.reason = b"OOMKilled"  # its OOM event is lost
            client.state.exit(WEB, 137)
            await running.eventually(lambda: len(ends(running)) > len(good))
            assert ends(running)[-1] == ("web", (137, True))
            await asyncio.sleep(1000)
            begin = running.clock.now().monotonic
            await reconnect(running, 3)
            assert to_seconds(running.clock.now().monotonic - begin) <= 3
            client.faults.release()
            await running.eventually(lambda: len(ends(running)) == 31 + count)
    assert cri_events(logs) == ["cri_record_unavailable"] * count
    assert {each["id"] for each in logs if each["event"].startswith("cri_")} == {key.id for key in bad}


async def test_hung_cri_is_reported_once_although_a_status_arrives() -> None:
    client, slow = kubernetes_client(), ContainerKey("k8s.io", "slow")

    async def delay(key: ContainerKey) -> None:
        if key == slow:
            await asyncio.sleep(cri.CALL_SECONDS + 0.1)

    client.hooks["recorded_exit"] = delay
    with capture_logs() as logs:
        async with synced_watch(client, first_audit_delay=30, audit_interval=30) as running:
            client.faults.hung_records.update(jobs(10))
            for key in (slow, *jobs(10)):
                client.state.run_unseen(key, 1)
            await reconnect(running)
            await asyncio.sleep(100)
            assert ends(running) == [("slow", (1, None))]
            assert cri_events(logs) == ["cri_unavailable"]
            client.faults.release()
            await running.eventually(lambda: len(ends(running)) == 11)
    assert cri_events(logs) == ["cri_unavailable", "cri_available"]


async def test_list_call_does_not_report_recovery_of_status_calls() -> None:
    client = kubernetes_client()
    client.state.pods.append(POD_LABELS)
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            for key in jobs(10):
                client.state.run_unseen(key, 1)
            client.faults.hang(STATUS)
            await reconnect(running)
            client.state.run(OTHER, client.state.container(WEB).labels)
            await running.eventually(lambda: ("started", {"app": "shop"}) in pod_labels(running))
            client.faults.hang(LIST)
            await reconnect(running, 3)
            client.faults.hanging.pop(LIST).set()
            await reconnect(running, 4)
            assert cri_events(logs) == ["cri_unavailable"]
            client.faults.release()
            await reconnect(running, 5)
    assert cri_events(logs) == ["cri_unavailable", "cri_available"]
    assert len(ends(running)) == 10


@pytest.mark.parametrize("fails", [False, True])
async def test_records_are_requested_for_limited_time(fails: bool) -> None:
    client = kubernetes_client()

    async def delay(key: ContainerKey) -> None:
        await asyncio.sleep(4)
        if fails and key.id in {"job-16", "job-32"}:
            raise UnreadableError("failed to get image")

    for key in jobs(100):
        client.state.run_unseen(key)
    client.hooks["recorded_exit"] = delay
    plugin = cri.CRI(client, client.clock, settings)
    keys = await plugin.exited_containers()
    begin = client.clock.now().monotonic
    recorded = await plugin.recorded_exits(keys)
    assert to_seconds(client.clock.now().monotonic - begin) <= cri.RECORDS_SECONDS
    assert recorded.keys() == {key for key in keys[:32] if not fails or key.id != "job-16"}


@pytest.mark.parametrize("fault", ["denied", "not initialized", "hung", "hung status", "unreadable"])
async def test_failing_cri_is_reported_once_and_delays_little(fault: str) -> None:
    client = kubernetes_client()
    with capture_logs() as logs:
        async with synced_watch(client, first_audit_delay=30, audit_interval=30) as running:
            await asyncio.sleep(1)
            end_unseen(client, WEB, 7)
            for key in (JOB, *jobs(3)):
                client.state.run_unseen(key)
            if fault == "denied":
                client.faults.errors[LIST, ""] = DENIED
            elif fault == "not initialized":
                client.faults.errors[LIST, ""] = UNAVAILABLE
            elif fault == "unreadable":
                client.faults.unreadable_responses.add(LIST)
            else:
                client.faults.hang(STATUS if fault == "hung status" else LIST)
            begin = running.clock.now().monotonic
            await reconnect(running)
            seconds = to_seconds(running.clock.now().monotonic - begin)
            assert seconds <= cri.INITIALIZATION_SECONDS + cri.CALL_SECONDS
            assert ends(running) == [("web", (None, None))]
            await reconnect(running, 3)
            await asyncio.sleep(100)
            client.faults.errors.clear()
            client.faults.unreadable_responses.clear()
            client.faults.release()
            await running.eventually(lambda: len(ends(running)) == 5)
    assert ends(running)[1:] == [(key.id, (0, None)) for key in (JOB, *jobs(3))]
    assert cri_events(logs) == ["cri_unavailable", "cri_available"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"uses_cri": False}, [("web", (None, None))]),
        ({"namespace_filter": lambda name: name != "k8s.io"}, []),
    ],
)
async def test_cri_is_not_called_if_off_or_not_watched(changed: dict[str, Any], expected: list[Any]) -> None:
    client = kubernetes_client()
    async with synced_watch(client, **changed) as running:
        end_unseen(client, WEB, 7)
        await reconnect(running)
    assert client.calls["exited_containers"] == 0
    assert ends(running) == expected


async def test_containerd_without_cri_is_not_reported() -> None:
    client = kubernetes_client()
    client.state.has_cri = False
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            end_unseen(client, WEB, 7)
            await reconnect(running)
    assert ends(running) == [("web", (None, None))]
    assert [each for each in logs if each["event"].startswith("cri_")] == []


def pod_labels(running: RunningWatch) -> list[tuple[str, dict[str, str] | None]]:
    """Type of each record of a container, and the labels of its pod."""
    records = [each for each in running.documents if each["container"]]
    return [(each["type"], each["container"]["pod"]["labels"]) for each in records]


async def test_pods_without_sandbox_container_get_labels_from_cri() -> None:
    client = kubernetes_client()
    client.state.pods.append(POD_LABELS)
    async with synced_watch(client) as running:
        client.state.pods.append({"io.kubernetes.pod.uid": "uid-2", "app": "later"})
        labels = {**client.state.container(WEB).labels, "io.kubernetes.pod.uid": "uid-2"}
        client.state.run(JOB, labels)
        client.state.exit(WEB, 0)
        await running.eventually(lambda: ends(running))
        client.state.pods.clear()
        client.state.exit(JOB, 0)
        await running.eventually(lambda: len(ends(running)) == 2)
    shop, later = {"app": "shop"}, {"app": "later"}
    assert pod_labels(running) == [("present", shop), ("started", later), ("exited", shop), ("exited", later)]
    assert client.calls["pod_labels"] == 2


async def test_cri_pods_are_not_listed_where_sandboxes_have_labels() -> None:
    client, sandbox = kubernetes_client(), ContainerKey("k8s.io", "sandbox")
    labels = {**POD_LABELS, "io.cri-containerd.kind": "sandbox"}
    client.state.create(sandbox, labels)
    async with synced_watch(client) as running:
        client.state.run(JOB, client.state.container(WEB).labels)
        client.state.exit(JOB, 0)
        await running.eventually(lambda: ends(running))
    assert pod_labels(running) == [(type_, {"app": "shop"}) for type_ in ("present", "started", "exited")]
    assert client.calls["pod_labels"] == 0


@pytest.mark.parametrize("fault", ["denied", "hung"])
async def test_cri_that_does_not_list_pods_is_reported_once(fault: str) -> None:
    """A proxy of an earlier version denies the call. Exits are completed nevertheless, and no start waits again."""
    client = kubernetes_client()
    client.state.pods.append(POD_LABELS)
    if fault == "denied":
        client.faults.errors[PODS, ""] = DENIED
    else:
        client.faults.hang(PODS)
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            client.state.run(JOB, client.state.container(WEB).labels)
            begin = running.clock.now().monotonic
            await running.eventually(lambda: len(pod_labels(running)) == 2)
            assert to_seconds(running.clock.now().monotonic - begin) <= 0.1
            assert client.calls["pod_labels"] == 1
            end_unseen(client, WEB, 7)
            await reconnect(running)
            assert ends(running) == [("web", (7, None))]
            client.faults.errors.clear()
            client.faults.release()
            await reconnect(running, 3)
    assert cri_events(logs) == ["cri_pods_unavailable"]
    assert pod_labels(running)[-1] == ("present", {"app": "shop"})


async def test_start_waits_briefly_for_labels_of_pods_while_cri_hangs() -> None:
    """The audit, which holds up no event, notices that CRI responds again."""
    client, container = kubernetes_client(), kubernetes_client().state.container(WEB)
    client.state.pods.append(POD_LABELS)
    with capture_logs() as logs:
        async with synced_watch(client, first_audit_delay=30, audit_interval=30) as running:
            client.faults.hang(PODS)
            begin = running.clock.now().monotonic
            client.state.run(JOB, container.labels)
            await running.eventually(lambda: len(pod_labels(running)) == 2)
            assert to_seconds(running.clock.now().monotonic - begin) <= cri.POD_SECONDS + 0.1
            await asyncio.sleep(60)
            begin = running.clock.now().monotonic
            client.state.run(OTHER, container.labels)
            await running.eventually(lambda: len(pod_labels(running)) == 3)
            assert to_seconds(running.clock.now().monotonic - begin) <= 0.1
            client.faults.release()
            await asyncio.sleep(60)
            client.state.run(LATER, container.labels)
            await running.eventually(lambda: len(pod_labels(running)) == 4)
    shop = {"app": "shop"}
    assert pod_labels(running) == [("present", shop), *[("started", None)] * 2, ("started", shop)]
    assert cri_events(logs) == ["cri_pods_unavailable"]
