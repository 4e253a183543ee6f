"""The AsyncAPI document, checked by AsyncAPI's own parser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.commands import whalebridge
from tests.testbed.components import cache_directory

_SCRIPT = """
const { Parser } = require("@asyncapi/parser");
const text = require("fs").readFileSync(0, "utf8");
new Parser().validate(text).then((diagnostics) => console.log(JSON.stringify(diagnostics)));
"""
WARNING = 1  # severity; errors have 0


@pytest.fixture(scope="module")
def document(require: Callable[..., None]) -> Any:
    require("asyncapi-parser")
    return json.loads(whalebridge("schema", "asyncapi").stdout)


def problems(document: Any) -> list[tuple[str, list[str]]]:
    """Return the errors and warnings of the parser: their codes, and where they are."""
    process = subprocess.run(
        ["node", "-e", _SCRIPT],
        input=json.dumps(document),
        cwd=cache_directory() / "asyncapi-parser",
        capture_output=True,
        text=True,
        check=True,
    )
    return [(each["code"], each["path"]) for each in json.loads(process.stdout) if each["severity"] <= WARNING]


def test_asyncapi_document_has_no_problems(document: Any) -> None:
    assert problems(document) == []


def test_asyncapi_parser_finds_problems(document: Any) -> None:
    channel = document["channels"]["natsRecords"]
    broken = {**document, "channels": {**document["channels"], "natsRecords": {**channel, "parameters": {}}}}
    assert [path for _, path in problems(broken)] == [["channels", "natsRecords", "parameters"]]
