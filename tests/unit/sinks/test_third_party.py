"""Sinks of third parties, as the example in tests/example_sink adds one."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import FatalError
from config.settings import SettingsError, load
from config.sinks import plugins
from sinks.factory import create_sink
from tests.documentation import ROOT, code_blocks
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
        (
            "other:x",
            "sinks.main",
            "stdout:, file:, kafka:, kafkas:, nats:, tls:, http:, https:, broken:, directory:, incomplete:",
        ),
        ({"type": "other"}, "sinks.main.type", "stdout, file, kafka, nats, http, broken, directory, incomplete"),
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


# --- docs/sinks.md ---

PAGE = (ROOT / "docs" / "sinks.md").read_text()


def test_documented_sink_is_the_tested_example() -> None:
    example, _ = code_blocks(PAGE, "python")
    assert example == (EXAMPLE / "whalebridge_example.py").read_text()
    (project,) = code_blocks(PAGE, "toml")
    documented = tomllib.loads(project)["project"]
    package = distribution(documented["name"])
    assert package.version == documented["version"]
    for name, module in documented["entry-points"][plugins.GROUP].items():
        assert package.entry_points.select(group=plugins.GROUP)[name].value == module


def documented_tests() -> dict[str, Any]:
    _, text = code_blocks(PAGE, "python")
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102 (the project's own code)
    return {name: value for name, value in names.items() if name.startswith("test_")}


def test_documented_tests_of_sink_pass(tmp_path: Path) -> None:
    tests = documented_tests()
    assert len(tests) == 3
    for name, test in tests.items():
        (tmp_path / name).mkdir()
        test(tmp_path / name)
