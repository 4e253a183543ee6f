"""Test the documentation: the projection, the examples, the commands, the settings and the links."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from bridge.cli import execute
from bridge.cli.record_format import format_record
from bridge.consumer.record_decoder import decode
from bridge.core import records
from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Engine
from bridge.core.record_encoder import Gap, RecordEncoder, SnapshotCoverage, parse_record
from bridge.core.records import SourcePosition
from config import reference_docs
from config.settings import Settings, SettingsError, load
from config.sources import yaml as config_file
from config.sources.cli import FLAGS
from config.sources.env import variable
from sinks import cloudevents
from sinks.encoding import encode_whalewatcher
from sinks.kafka.messages import event_messages
from sinks.nats.messages import SubjectBuilder, message_id
from sinks.otlp import encode_otlp
from sinks.protos.logs_pb2 import LogsData
from sinks.state_table import StateKey
from tests.documentation import (
    PAGES,
    ROOT,
    ProjectionFunction,
    code_blocks,
    documented_fold,
    page_commands,
    setting_paths,
)
from tests.sample_records import control_record

EVENTS = (ROOT / "docs" / "events.md").read_text()
README = (ROOT / "README.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
SOURCES = ("bridge", "config", "deploy", "examples", "sinks", "tests")

Documents = list[dict[str, Any]]


# --- the reference projection; test_projection.py compares it with ours for any history ---

SOURCE = ("node-1", "engine")


@pytest.fixture
def fold() -> ProjectionFunction:
    return documented_fold()


class RecordHistory:
    """Create records as the bridge publishes them."""

    def __init__(self, epoch: int = 1, previous: SourcePosition | None = None) -> None:
        self._encoder = RecordEncoder("node-1", Engine("engine", "2", "/c.sock", 1), epoch, previous=previous)

    def publish(self, type_: records.TransitionType, id_: str) -> Documents:
        return self._decoded([self._encoder.encode_transition(make_transition(type_, id_))])

    def snapshot(self, *running: str, backfill: tuple[Transition, ...] = (), failed: tuple[str, ...] = ()) -> Documents:
        coverage = SnapshotCoverage(["default", "shop"], list(failed), False)
        present = [make_transition("present", id_) for id_ in running]
        return self._decoded(self._encoder.encode_snapshot(Gap("start", None, 0), coverage, list(backfill), present, 0))

    @staticmethod
    def _decoded(records: list[records.Record]) -> Documents:
        return [json.loads(record.data) for record in records]


def make_transition(type_: records.TransitionType | records.SnapshotRecordType, id_: str) -> Transition:
    namespace, _, id_ = id_.rpartition("/")
    key = ContainerKey(namespace or "default", id_)
    return Transition(type_, "live", 0, key, None, None, 1, "boot-1", type_ == "paused")


def test_documented_projection_follows_transitions(fold: ProjectionFunction) -> None:
    history = RecordHistory()
    records = history.snapshot("a", "b") + history.publish("started", "c") + history.publish("exited", "a")
    records += history.publish("paused", "b")
    running = fold(records)[SOURCE]
    assert {id_: container["paused"] for id_, container in running.items()} == {"b": True, "c": False}


def test_documented_projection_removes_unlisted_after_snapshot(fold: ProjectionFunction) -> None:
    history = RecordHistory()
    records = history.snapshot("a", "b", "shop/c")
    records += history.snapshot(
        "b", backfill=(make_transition("started", "d"), make_transition("exited", "d")), failed=("shop",)
    )
    assert set(fold(records)[SOURCE]) == {"b", "shop/c"}


# --- the gap check ---

Gaps = Callable[[Iterable[dict[str, Any]]], Iterable[tuple[Any, ...]]]


@pytest.fixture
def gaps() -> Gaps:
    (code,) = code_blocks(RELIABILITY, "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (the project's own code)
    return names["gaps"]  # type: ignore[no-any-return]


PREVIOUS = SourcePosition(1, 5)


def epochs(previous: SourcePosition | None = PREVIOUS) -> Documents:
    """Return the records of two epochs, five each; the second one names ``previous``."""
    first, second = RecordHistory(), RecordHistory(epoch=2, previous=previous)
    records = first.snapshot("a", "b") + first.publish("exited", "a")
    return records + second.snapshot("b") + second.publish("started", "c") + second.publish("exited", "c")


def lost(record: dict[str, Any], first: int) -> dict[str, Any]:
    """Return the loss record that replaces the records from ``first`` to ``record``."""
    loss = {"epoch": record["epoch"], "first": first, "last": record["sequence"], "reason": "overflow"}
    return record | {"type": "lost", "snapshot": None, "lost": loss}


def test_documented_gap_check_finds_none_in_complete_records(gaps: Gaps) -> None:
    records = epochs()
    assert list(gaps(records)) == []
    assert list(gaps(records[2:])) == []
    assert list(gaps([*records[:4], *records[1:]])) == []  # duplicates
    assert list(gaps([*records[:4], records[3] | {"type": "heartbeat"}, *records[4:]])) == []


@pytest.mark.parametrize("missing", range(1, 9))
def test_documented_gap_check_finds_missing_records(missing: int, gaps: Gaps) -> None:
    records = epochs()
    before, after = (records[index] for index in (missing - 1, missing + 1))
    expected = [(SOURCE, (before["epoch"], before["sequence"]), (after["epoch"], after["sequence"]), None)]
    assert list(gaps(records[:missing] + records[missing + 1 :])) == expected


def test_documented_gap_check_reports_epoch_without_previous(gaps: Gaps) -> None:
    assert list(gaps(epochs(previous=None))) == [(SOURCE, (1, 5), (2, 1), None)]


def test_documented_gap_check_reports_reason_of_loss(gaps: Gaps) -> None:
    records = epochs()
    reported = list(gaps([*records[:1], lost(records[3], first=2), *records[4:]]))
    assert reported == [(SOURCE, (1, 1), (1, 4), "overflow")]
    assert list(gaps([*records[:1], lost(records[3], first=3), *records[4:]])) == [
        *reported,
        (SOURCE, (1, 1), (1, 3), None),
    ]


# --- examples ---


def test_documented_examples_match_record_schema() -> None:
    examples = [example for page in PAGES for example in code_blocks(page.read_text(), "json")]
    assert len(examples) > len(code_blocks(EVENTS, "json")) > 1
    for example in examples:
        jsonschema.Draft202012Validator(records.json_schema()).validate(json.loads(example))
        record = msgspec.json.decode(example, type=records.EventRecord)
        assert json.loads(msgspec.json.encode(record)) == json.loads(example)


@pytest.fixture
def readme_record() -> records.Record:
    (example,) = code_blocks(README, "json")
    return parse_record(msgspec.json.encode(msgspec.json.decode(example, type=records.EventRecord)))


def text_fields(page: str) -> dict[str, str]:
    """Return the fields of the example message of a page, by name."""
    (block,) = code_blocks((ROOT / "docs" / page).read_text(), "text")
    return {fields[0]: fields[1] for fields in (line.split(maxsplit=1) for line in block.splitlines())}


def test_documented_line_is_formatted_record(readme_record: records.Record) -> None:
    (line,) = code_blocks(README, "text")
    assert line == format_record(decode(readme_record.data)[0], colored=False, with_host=False) + "\n"


def test_documented_kafka_message_is_encoded_record(readme_record: records.Record) -> None:
    source = StateKey(readme_record.host, readme_record.engine, "", "")
    (message,) = event_messages(source, [readme_record], "json", "binary")
    headers = {name: value.decode() for name, value in message.headers}
    assert text_fields("kafka.md") == {"key": message.key.decode(), **headers}


def test_documented_nats_message_is_encoded_record(readme_record: records.Record) -> None:
    subject = SubjectBuilder("containers", "{host}.{namespace}.{type}").build(readme_record)
    assert text_fields("nats.md") == {"subject": subject, "Nats-Msg-Id": message_id(readme_record)}
    kafka = {name.replace("_", "-"): value for name, value in text_fields("kafka.md").items() if name != "key"}
    kafka["ce-datacontenttype"] = kafka.pop("content-type")
    del kafka["ce-partitionkey"]
    assert cloudevents.nats_headers(readme_record) == kafka


@pytest.mark.parametrize(("broker", "variable"), [("kafka", "30 s"), ("nats", "(10210)"), ("http", "30 s")])
def test_documented_broker_errors_match_source(broker: str, variable: str) -> None:
    page = (ROOT / "docs" / f"{broker}.md").read_text()
    table = page[page.index("| text | meaning |") :]
    texts = [text for line in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    assert len(texts) > 10
    paths = [
        *(ROOT / "sinks" / broker).glob("*.py"),
        *(ROOT / "sinks" / name for name in ("token_command.py", "tls_errors.py")),
    ]
    source = re.sub(r"\s+", " ", "".join(path.read_text() for path in paths))
    source = re.sub(r"\{principal\(.*?\)\}", "user", re.sub(r'"\s*f?"', "", source))
    for text in texts:
        for fragment in text.replace(variable, "...").split("..."):
            assert fragment.strip(" :;") in source, text


def test_documented_whalewatcher_document_is_encoded_record(readme_record: records.Record) -> None:
    (block,) = code_blocks(EVENTS, "text")
    assert json.loads(block) == json.loads(encode_whalewatcher(readme_record) or b"")


def test_documented_otlp_attributes_are_encoded(readme_record: records.Record) -> None:
    """The example has no pod, and a control record no container."""
    document = msgspec.json.decode(readme_record.data)
    document["exit"]["oom"] = False
    document["container"]["pod"] = {"name": "n", "namespace": "s", "uid": "u", "container": "c", "labels": None}
    documents = [document, document | {"container": document["container"] | {"image": "sha256:a"}}]
    encoded = [encode_otlp(parse_record(msgspec.json.encode(each))) for each in documents]
    encoded.append(encode_otlp(control_record(1, "snapshot_started")))
    section = EVENTS.partition("### `encoding: otlp`")[2].partition("\n### ")[0]
    fields, attributes = (table.splitlines()[1:] for table in section.split("|---|---|")[1:])
    logs = [each.resource_logs[0].scope_logs[0].log_records[0] for each in map(LogsData.FromString, encoded)]
    assert _names(attributes) == {each.key for log in logs for each in log.attributes}
    assert _names(fields) - {"resource", "scope"} == {each.name for each, _ in logs[0].ListFields()} - {
        "body",
        "attributes",
    }


def _names(table: Iterable[str]) -> set[str]:
    """Return the names in the first column of a table."""
    lines = [line for line in table if line.startswith("|")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}


def test_documented_pod_has_all_fields() -> None:
    (pod,) = re.findall(r"A made-up example: `(.*?)`", EVENTS)
    assert json.loads(pod) == msgspec.to_builtins(msgspec.json.decode(pod, type=records.Pod))


def test_documentation_lists_every_field_and_type() -> None:
    names = {*records.EventRecord.__struct_fields__, *records.Container.__struct_fields__}
    names |= {*records.Snapshot.__struct_fields__, *records.Pod.__struct_fields__, *records.Exit.__struct_fields__}
    names |= {*get_args(records.RecordType), *get_args(records.SnapshotReason), *get_args(records.LossReason)}
    assert [name for name in sorted(names) if f"`{name}`" not in EVENTS and f'"{name}"' not in EVENTS] == []


# --- commands ---


def test_documented_commands_are_in_console_blocks() -> None:
    """Check that commands are where test_documented_commands.py finds and runs them."""
    for page in PAGES:
        for block in code_blocks(page.read_text(), ""):
            assert not re.search(r"^(\$ |whalebridge |make |nats |kubectl |helm )", block, re.MULTILINE), page


def test_documented_commands_and_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        command.text for page in PAGES for command in page_commands(page) if command.text.startswith("whalebridge ")
    ]
    documented = [shlex.split(line.partition("|")[0].partition(" > ")[0])[1:] for line in lines]
    assert ["run"] in documented
    for command in documented:
        assert execute([command[0], "--help"]) == 0
        output = capsys.readouterr().out
        assert [flag for flag in command if flag.startswith("--") and f"{flag} " not in output] == []


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        documented = set(re.findall(r"(?:`|\$ )make ([a-z-]+)\b", page.read_text()))
        assert documented - targets == set(), page


# --- settings ---

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))


def load_text(text: str, directory: Path) -> Settings:
    path = directory / "config.yaml"
    path.write_text(text)
    return load(path=str(path))


def test_configuration_reference_is_current(tmp_path: Path) -> None:
    page = tmp_path / "configuration.md"
    page.write_text(CONFIGURATION)
    assert reference_docs.main(page, check=True) == 0
    page.write_text(CONFIGURATION.replace("#### `log.level`", "#### `log.lvl`"))
    assert reference_docs.main(page, check=True) == 1
    assert reference_docs.main(page, check=False) == 0
    assert page.read_text() == CONFIGURATION


def test_configuration_reference_lists_every_setting() -> None:
    for path in setting_paths():
        if path != "sinks.ID.type":
            assert f"\n#### `{path}`\n" in CONFIGURATION
            is_mapping = path in ("attributes", "sinks.ID.headers")
            assert f"`{variable(f'{path}.name' if is_mapping else path)}`" in CONFIGURATION


def test_flags_of_settings_exist_in_run_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "--help"]) == 0
    output = capsys.readouterr().out
    assert [flag for flag in FLAGS.values() if f"{flag} " not in output] == []
    assert set(FLAGS) <= setting_paths()


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_documented_configuration_is_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "example_sink")  # the sink of docs/sinks.md
    for block in code_blocks(path.read_text(), "yaml"):
        load_text(block, tmp_path)


def test_documented_variables_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line for text in (README, CONFIGURATION) for block in code_blocks(text, "console") for line in block.split("\n")
    ]
    lines += [f"$ export {line}" for line in code_blocks(INSTALL, "ini")[0].splitlines()]
    for line in lines:
        with monkeypatch.context() as environment:
            for assignment in shlex.split(line.removeprefix("$ export "), comments=True):
                if line.startswith("$ export "):
                    environment.setenv(*assignment.split("=", 1))
            sink = "{type: kafka, topic: t, bootstrap_servers: h, auth: {username: u, password_file: /f}}"
            load_text(f"sinks: {{main: {sink}}}", tmp_path)


def test_documented_validation_errors_are_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "#\nlog:\n  levl: debug\n\nsinks:\n  # needs a topic\n  main:\n    type: kafka\n    bootstrap_servers: [h]\n"
    )
    monkeypatch.setenv("WHALEBRIDGE_SINKS__MAIN__TLS__ENABLED", "perhaps")
    with pytest.raises(SettingsError) as caught:
        load({"snapshot": {"interval": "3"}}, str(path))
    documented = CONFIGURATION.partition("\n```\nwhalebridge: ")[2].partition("```")[0]
    printed = [f"whalebridge: {error}".replace(str(path), config_file.DEFAULT) for error in caught.value.errors]
    assert sorted(printed) == sorted(f"whalebridge: {documented}".splitlines())


def test_documented_configuration_examples_exist() -> None:
    assert [path.stem for path in EXAMPLES] == ["both", "filters", "http", "kafka", "nats", "stdout"]
    assert [path.name for path in EXAMPLES if f"config/examples/{path.name}" not in CONFIGURATION] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_configuration_examples_are_valid(path: Path) -> None:
    types = {
        "stdout": ["stdout"],
        "kafka": ["kafka"],
        "nats": ["nats"],
        "http": ["http"],
        "both": ["kafka", "nats"],
        "filters": ["kafka"],
    }
    assert [sink.type for sink in load(path=str(path)).sinks.values()] == types[path.stem]
    assert path.read_text().startswith("# yaml-language-server: $schema=")


# --- links ---


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_documentation_links_exist(path: Path) -> None:
    links = re.findall(r"\[([^\]]*)\]\(([^)#]*)#?([^)]*)\)", path.read_text())
    targets = [(text, path.parent / link if link else path, anchor) for text, link, anchor in links if ":" not in link]
    assert [target for _, target, _ in targets if not target.exists()] == []
    assert [(target.name, anchor) for _, target, anchor in targets if anchor and anchor not in anchors(target)] == []
    assert [text for text, target, _ in targets if text.endswith(".py") and target.name != text] == []


def test_site_navigation_lists_every_page() -> None:
    configuration = (ROOT / "deploy" / "site" / "mkdocs.yml").read_text()
    listed = re.findall(r": ([\w-]+\.md)$", configuration, re.MULTILINE)
    pages = {path.name for path in ROOT.glob("docs/*.md")} | {f"{path.stem.lower()}.md" for path in ROOT.glob("*.md")}
    assert sorted(listed) == sorted(pages - {"readme.md"} | {"index.md", "chart.md"})


@pytest.mark.parametrize(
    ("document", "text", "rewritten"),
    [
        ("README.md", "![a page](docs/images/a.png)", "![a page](images/a.png)"),
        ("docs/operations.md", "![a page](images/a.png)", "![a page](images/a.png)"),
        ("README.md", "[records](docs/events.md#exit)", "[records](events.md#exit)"),
        ("docs/events.md", "[overview](../README.md)", "[overview](index.md)"),
        ("README.md", "[a file](deploy/Dockerfile)", "[a file](https://host/repository/blob/HEAD/deploy/Dockerfile)"),
    ],
)
def test_site_link_leads_to_same_document(
    document: str, text: str, rewritten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SITE_REVISION", raising=False)
    rewrite_links = runpy.run_path(str(ROOT / "deploy" / "site" / "hooks.py"))["rewrite_links"]
    assert rewrite_links(text, document, "https://host/repository") == rewritten


# --- layout ---


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_documented_source_files_exist(path: Path) -> None:
    sources = [f"/{source.relative_to(ROOT)}" for name in SOURCES for source in (ROOT / name).rglob("*.py")]
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", path.read_text()))
    assert [name for name in named if not any(source.endswith(f"/{name}") for source in sources)] == []


def test_architecture_page_lists_every_module() -> None:
    layout = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Layout\n")[2].partition("\n## ")[0]
    packages = re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", layout, re.MULTILINE)
    documented = {package + name for package, modules in packages for name in re.findall(r"`(\w+\.py)`", modules)}
    paths = [path for top in ("bridge", "sinks", "config") for path in (ROOT / top).rglob("*.py")]
    modules = [path for path in paths if not path.name.startswith("__") and not path.stem.endswith("_pb2")]
    assert documented == {str(path.relative_to(ROOT)) for path in modules}


def test_reliability_lists_every_fault_and_its_tests() -> None:
    faults = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    linked = {(int(number), name) for number, tests in faults for name in re.findall(r"\[(test_\w+\.py)\]", tests)}
    named = {
        (int(number), path.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"def test_fault_(\d\d)_", path.read_text())
    }
    assert linked == named
    assert [int(number) for number, _ in faults] == list(range(1, len(faults) + 1))
    assert {number for number, _ in linked} == set(range(1, len(faults) + 1))
