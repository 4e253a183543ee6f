"""Test which settings a reload applies, which need a restart, and how errors are reported."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from bridge.core.errors import FatalError
from bridge.settings_reload import POLL_SECONDS, ConfigFile, SettingsReloader
from config.settings import Settings, load
from tests.virtual_time import VirtualClock

KAFKA = {"type": "kafka", "bootstrap_servers": "h:9092", "topic": "t"}
AUTH = {"username": "bridge", "password": "hunter2"}


class ReloadHarness:
    """Load settings from flags and record the settings that the reloader applies."""

    def __init__(self, **flags: Any) -> None:
        self.flags = flags
        self.applied: list[Settings] = []
        self.reloader = SettingsReloader(load(flags), self.load, self.apply)
        self.apply_fails = False

    def load(self) -> Settings:
        return load(self.flags)

    async def apply(self, settings: Settings) -> None:
        if self.apply_fails:
            raise FatalError("the sink's library is not installed")
        self.applied.append(settings)

    async def reload(self, **flags: Any) -> list[dict[str, Any]]:
        """Replace the flags, reload, and return the log lines."""
        self.flags = flags
        with capture_logs() as logs:
            await self.reloader.reload()
        return [{name: value for name, value in line.items() if name != "hint"} for line in logs]


def log_line(level: str, event: str, **fields: object) -> dict[str, object]:
    return {"log_level": level, "event": event, **fields}


async def test_changed_settings_are_applied_and_logged_without_values() -> None:
    bridge = ReloadHarness(sinks={"main": KAFKA | {"auth": AUTH}})
    changed = {
        "sinks": {"main": KAFKA | {"auth": AUTH | {"password": "swordfish"}}},
        "log": {"level": "debug"},
        "containers": {"names": {"exclude": "web"}, "additional_events": "oom"},
    }
    assert await bridge.reload(**changed) == [
        log_line(
            "info",
            "settings_reloaded",
            changed=[
                "containers.names.exclude",
                "containers.additional_events",
                "sinks.main.auth.password",
                "log.level",
            ],
        )
    ]
    (settings,) = bridge.applied
    assert settings.log.level == "debug"
    assert await bridge.reload(**changed) == [log_line("info", "settings_reloaded", changed=[])]
    assert bridge.applied == [settings] * 2  # applied again, because the content of referenced files may have changed


async def test_settings_needing_restart_are_logged_and_unchanged() -> None:
    bridge = ReloadHarness(host="a", sinks={"main": KAFKA, "stdout": "stdout:"})
    changed = {
        "host": "b",
        "log": {"format": "json", "level": "debug"},
        "sinks": {"main": KAFKA | {"heartbeats": False}, "file": "file:/tmp/x"},
        "outbox": {"max_records": 1000},
    }
    logs = await bridge.reload(**changed)
    unchanged = ["host", "sinks", "outbox.max_records", "log.format"]
    assert logs == [
        log_line("warning", "settings_restart_required", changed=logs[0]["changed"]),
        log_line("info", "settings_reloaded", changed=["sinks.main.heartbeats", "log.level"]),
    ]
    assert sorted(logs[0]["changed"]) == sorted(unchanged)
    (settings,) = bridge.applied
    assert (settings.host, settings.log.format, settings.log.level) == ("a", "auto", "debug")
    assert {id_: sink.heartbeats for id_, sink in settings.sinks.items()} == {"main": False, "stdout": False}


async def test_reloader_names_settings_that_are_not_in_effect() -> None:
    bridge = ReloadHarness()
    assert bridge.reloader.error is None
    await bridge.reload(log={"format": "json"}, outbox={"max_records": 1000})
    assert bridge.reloader.error == "changes of outbox.max_records, log.format need a restart"
    await bridge.reload(host="", log={"level": "loud"})
    assert bridge.reloader.error is not None
    assert "host: " in bridge.reloader.error
    assert "; --log-level: log.level: " in bridge.reloader.error
    bridge.apply_fails = True
    await bridge.reload()
    assert bridge.reloader.error == "the sink's library is not installed"
    bridge.apply_fails = False
    await bridge.reload(log={"level": "debug"})
    assert bridge.reloader.error is None


async def test_sink_of_another_type_under_same_id_is_replaced() -> None:
    bridge = ReloadHarness(sinks={"events": KAFKA})
    logs = await bridge.reload(sinks={"events": {"type": "nats", "servers": "h:4222", "subject_prefix": "s"}})
    assert logs == [log_line("info", "settings_reloaded", changed=["sinks.events.type"])]


async def test_reordered_sinks_change_nothing() -> None:
    bridge = ReloadHarness(sinks={"a": KAFKA, "b": "stdout:"})
    assert await bridge.reload(sinks={"b": "stdout:", "a": KAFKA}) == [
        log_line("info", "settings_reloaded", changed=[])
    ]


async def test_invalid_settings_are_logged_and_change_nothing() -> None:
    bridge = ReloadHarness()
    logs = await bridge.reload(host="", log={"level": "loud"})
    assert [line["event"] for line in logs] == ["settings_reload_failed"] * 2
    assert {str(line["error"]).rpartition(": ")[0] for line in logs} == {"host", "--log-level: log.level"}
    assert bridge.applied == []
    assert await bridge.reload() == [log_line("info", "settings_reloaded", changed=[])]


async def test_failed_settings_reload_can_be_repeated() -> None:
    bridge = ReloadHarness(log={"level": "info"})
    bridge.apply_fails = True
    assert await bridge.reload(log={"level": "debug"}) == [
        log_line("error", "settings_reload_failed", error="the sink's library is not installed")
    ]
    bridge.apply_fails = False
    assert await bridge.reload(log={"level": "debug"}) == [log_line("info", "settings_reloaded", changed=["log.level"])]


# --- changes of the configuration file ---


@contextlib.asynccontextmanager
async def reload_requests(file: ConfigFile, clock: VirtualClock) -> AsyncIterator[list[float]]:
    """Poll a file; yield the times of the requests to reload, which grow."""
    requests: list[float] = []
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(file.poll(clock, lambda: requests.append(loop.time())))
    yield requests
    task.cancel()


async def intervals(number: int) -> None:
    await asyncio.sleep((number + 0.5) * POLL_SECONDS)


async def test_changed_file_requests_one_reload(tmp_path: Path, clock: VirtualClock) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log: {level: info}\n")
    async with reload_requests(ConfigFile(str(path)), clock) as requests:
        await intervals(3)
        assert requests == []
        for count, text in enumerate(("log: {level: debug}\n", "log: {level: info}\n"), start=1):
            replacement = tmp_path / "new"
            replacement.write_text(text)
            replacement.rename(path)
            await intervals(2)
            assert len(requests) == count
        await intervals(3)
        assert len(requests) == 2


async def test_config_map_update_requests_one_reload(tmp_path: Path, clock: VirtualClock) -> None:
    """The kubelet writes the new files into a new directory, and replaces the link ..data to it."""

    def update(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    update("..1", "log: {level: info}")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    async with reload_requests(ConfigFile(str(tmp_path / "config.yaml")), clock) as requests:
        await intervals(3)
        assert requests == []
        update("..2", "log: {level: warn}")
        await intervals(5)
        assert len(requests) == 1


async def test_change_before_first_poll_requests_reload(tmp_path: Path, clock: VirtualClock) -> None:
    path = tmp_path / "config.yaml"
    file = ConfigFile(str(path))  # a default file may be missing at the start
    path.write_text("log: {level: info}")
    async with reload_requests(file, clock) as requests:
        await intervals(3)
        assert len(requests) == 1


async def test_file_requests_reload_only_when_it_rests(tmp_path: Path, clock: VirtualClock) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log:")
    async with reload_requests(ConfigFile(str(path)), clock) as requests:
        for number in range(1, 8):  # a file that is edited in place
            path.write_text("log:" + " " * number)
            await asyncio.sleep(POLL_SECONDS)
        assert requests == []
        await intervals(2)
        assert len(requests) == 1


async def test_file_that_is_gone_requests_no_reload(tmp_path: Path, clock: VirtualClock) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log: {level: info}")
    async with reload_requests(ConfigFile(str(path)), clock) as requests:
        path.rename(tmp_path / "moved")
        await intervals(4)
        (tmp_path / "moved").rename(path)
        await intervals(4)
        assert requests == []
        path.unlink()
        await intervals(4)
        path.write_text("log: {level: debug}")
        await intervals(2)
        assert len(requests) == 1


async def test_pipe_as_configuration_file_is_never_read(clock: VirtualClock, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"log: {level: info}")
    async with reload_requests(ConfigFile(f"/dev/fd/{reader}"), clock) as requests:
        await intervals(4)
        assert requests == []
    assert os.read(reader, 100) == b"log: {level: info}"
