"""Test which settings a reload applies, which need a restart, and how errors are reported."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from bridge.core.errors import FatalError
from bridge.settings_reload import SettingsReloader
from config.settings import Settings, load

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
