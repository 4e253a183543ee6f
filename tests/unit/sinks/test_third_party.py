"""Sinks of third parties, as the example in tests/example_sink adds one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from bridge.core.errors import FatalError
from config.settings import SettingsError, load
from config.sinks import plugins
from sinks.factory import create_sink
from tests.golden import Golden
from tests.sample_records import control_record, record
from tests.virtual_time import VirtualClock

pytestmark = pytest.mark.real_time

EXAMPLE = Path(__file__).parents[2] / "example_sink"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is where Python finds packages and their metadata."""
    monkeypatch.syspath_prepend(EXAMPLE)
    importlib.invalidate_caches()


def stored_records(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("form", ["url", "settings"])
async def test_third_party_sink_is_configured_and_publishes(form: str, tmp_path: Path) -> None:
    sink = (
        f"directory:{tmp_path}" if form == "url" else {"type": "directory", "path": str(tmp_path), "encoding": "json"}
    )
    settings = load({"sinks": {"main": sink}}).sinks["main"]
    made = create_sink(settings, VirtualClock())
    await made.start()
    await made.publish([record(1), record(2)])
    await made.close()
    assert stored_records(tmp_path) == {record(1).id: record(1).data, record(2).id: record(2).data}


async def test_third_party_sink_raises_fatal_error(tmp_path: Path, golden: Golden) -> None:
    made = create_sink(load({"sinks": [f"directory:{tmp_path}/nowhere"]}).sinks["directory"], VirtualClock())
    with golden.error("sink_errors", "example sink", FatalError, tmp_path / "nowhere"):
        await made.start()


async def test_third_party_sink_writes_every_encoding(tmp_path: Path) -> None:
    made = create_sink(
        load({"sinks": {"main": {"type": "directory", "path": str(tmp_path), "encoding": "whalewatcher"}}}).sinks[
            "main"
        ],
        VirtualClock(),
    )
    await made.publish([control_record(1, "snapshot_started"), record(2)])
    assert list(stored_records(tmp_path)) == [record(2).id]


@pytest.mark.parametrize(
    ("sink", "path", "named"),
    [
        ("directory:", "sinks.main", "directory:PATH"),
        ({"type": "directory"}, "sinks.main.path", ""),
        ({"type": "directory", "path": "/x", "pth": "/y"}, "sinks.main.pth", ""),
        ("broken:x", "sinks.main", "whalebridge_example_missing"),
        ({"type": "broken"}, "sinks.main", "'broken'"),
        ("incomplete:x", "sinks.main", "bridge.core.containerd_model"),
        ("other:x", "sinks.main", "stdout:, file:, kafka:, kafkas:, nats:, tls:, broken:, directory:, incomplete:"),
        ({"type": "other"}, "sinks.main.type", "stdout, file, kafka, nats, broken, directory, incomplete"),
    ],
)
def test_third_party_sink_settings_errors_have_path(sink: object, path: str, named: str, golden: Golden) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"sinks": {"main": sink}})
    (error,) = caught.value.errors
    assert error.startswith(f"--sink: {path}: ")
    assert named in error
    golden.entry("sink_errors", f"settings of a third party's sink, {sink}", error)


def test_unknown_sink_type_is_rejected(golden: Golden) -> None:
    with golden.error("sink_errors", "no such plugin", ValueError, "'nothing'"):
        plugins.load("nothing")
