"""The encoding `whalewatcher`, decoded by Go's encoding/json into structs like whalewatcher's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.core.records import Record, RecordType
from sinks.encoding import encode_whalewatcher
from tests.sample_records import record

READER = Path(__file__).parents[1] / "whalewatcher_reader"
NANOSECONDS = 1_795_447_268_256_344_486  # of TIME


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[Record]], list[dict[str, Any]]]:
    """Return a function that encodes records and decodes them with the Go program."""
    if shutil.which("go") is None:
        message = "not installed: go"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    program = tmp_path_factory.mktemp("go") / "reader"
    environment = os.environ | {"GOWORK": "off", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "GOPROXY": "off"}
    subprocess.run(["go", "build", "-o", program, "."], cwd=READER, env=environment, check=True, timeout=200)

    def decode(records: Sequence[Record]) -> list[dict[str, Any]]:
        encoded = [data for each in records if (data := encode_whalewatcher(each))]
        result = subprocess.run([program], input=b"\n".join(encoded), capture_output=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr.decode()
        return [json.loads(line) for line in result.stdout.splitlines()]

    return decode


def test_go_decodes_every_record_type(read: Callable[[Sequence[Record]], list[dict[str, Any]]]) -> None:
    types: tuple[RecordType, ...] = ("started", "present", "exited", "paused", "unpaused")
    decoded = read([record(number, type_, id_="abc", name="web") for number, type_ in enumerate(types)])
    assert [each["type"] for each in decoded] == ["started", "started", "exited", "paused", "unpaused"]
    for each in decoded:
        assert each["again"] == each["type"]
        assert each["nanoseconds"] == NANOSECONDS
        assert (each["id"], each["project"]) == ("shop/abc", "web-shop")
        assert each["container"] == {
            "ID": "shop/abc",
            "Name": "shop/web",
            "Labels": {"com.docker.compose.project": "web-shop"},
            "PID": 4711,
            "Project": "web-shop",
            "Paused": each["type"] == "paused",
            "Rucksack": None,
        }


@pytest.mark.parametrize("name", ["größe/容器", "\x00\x1b\x7f\u2028", '"\\\r\n', "\U0001f433", "x" * 100_000])
def test_go_decodes_hostile_names(name: str, read: Callable[[Sequence[Record]], list[dict[str, Any]]]) -> None:
    (decoded,) = read([record(1, id_=name, namespace="default", project=name, labels={name: name})])
    assert (decoded["id"], decoded["project"], decoded["container"]["Name"]) == (name, name, name)
    assert decoded["container"]["Labels"] == {name: name}
