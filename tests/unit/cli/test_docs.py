"""What the documents say is tried: the fold, the examples, the commands, the settings, the links."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from bridge.cli import execute
from bridge.core import events
from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.events import Previous
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Engine
from config import reference, suggestions
from config.settings import Settings, SettingsError, load
from config.sources import yaml as config_file
from config.sources.cli import FLAGS
from config.sources.env import variable
from tests.documents import PAGES, ROOT, blocks, commands

EVENTS = (ROOT / "docs" / "events.md").read_text()
README = (ROOT / "README.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()

Documents = list[dict[str, Any]]
Fold = Callable[[Iterable[dict[str, Any]]], dict[tuple[str, str], dict[str, dict[str, Any]]]]


# --- the reference fold ---

SOURCE = ("node-1", "engine")


@pytest.fixture
def fold() -> Fold:
    (code,) = blocks(EVENTS, "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (it is ours)
    return names["fold"]  # type: ignore[no-any-return]


class Story:
    """Records as the bridge writes them."""

    def __init__(self, epoch: int = 1, engine: str = "engine", previous: Previous | None = None) -> None:
        self._ledger = Ledger("node-1", Engine(engine, "2", "/c.sock", 1), epoch, previous=previous)

    def tell(self, type_: events.TransitionType, id_: str) -> Documents:
        return self._decoded([self._ledger.transition(told(type_, id_))])

    def snapshot(self, *rows: str, missed: tuple[Transition, ...] = (), failed: tuple[str, ...] = ()) -> Documents:
        coverage = Coverage(["default", "shop"], list(failed), False)
        present = [told("present", id_) for id_ in rows]
        return self._decoded(self._ledger.snapshot(Gap("start", None, 0), coverage, list(missed), present, 0))

    @staticmethod
    def _decoded(records: list[events.Record]) -> Documents:
        return [json.loads(record.data) for record in records]


def told(type_: events.TransitionType | events.RowType, id_: str) -> Transition:
    namespace, _, id_ = id_.rpartition("/")
    key = ContainerKey(namespace or "default", id_)
    return Transition(type_, "live", 0, key, None, None, 1, "boot-1", type_ == "paused")


def test_the_fold_follows_transitions(fold: Fold) -> None:
    story = Story()
    records = story.snapshot("a", "b") + story.tell("started", "c") + story.tell("exited", "a")
    records += story.tell("paused", "b")
    here = fold(records)[SOURCE]
    assert {id_: container["paused"] for id_, container in here.items()} == {"b": True, "c": False}


def test_a_snapshot_ends_what_it_does_not_name_but_for_failed_namespaces(fold: Fold) -> None:
    story = Story()
    records = story.snapshot("a", "b", "shop/c")
    records += story.snapshot("b", missed=(told("started", "d"), told("exited", "d")), failed=("shop",))
    assert set(fold(records)[SOURCE]) == {"b", "shop/c"}


def test_an_unfinished_snapshot_ends_nothing(fold: Fold) -> None:
    first = Story(epoch=1)
    records = first.snapshot("a", "b") + first.snapshot("b")[:-1]
    assert set(fold(records)[SOURCE]) == {"a", "b"}
    records += Story(epoch=2).snapshot("a")
    assert set(fold(records)[SOURCE]) == {"a"}


def test_repetitions_change_nothing(fold: Fold) -> None:
    story = Story()
    records = story.snapshot("a") + story.tell("exited", "a") + story.tell("started", "b") + story.snapshot("b")
    for start in range(len(records)):
        for end in range(start, len(records) + 1):
            assert fold(records[:end] + records[start:]) == fold(records)
    for record in records:
        assert fold([*records, record]) == fold(records)


def test_the_end_of_a_snapshot_whose_beginning_was_not_seen_ends_nothing(fold: Fold) -> None:
    assert set(fold(Story().snapshot("a", "b")[2:])[SOURCE]) == {"b"}


@pytest.mark.parametrize("begin", range(6))
def test_who_joins_in_the_middle_is_right_after_the_next_snapshot(begin: int, fold: Fold) -> None:
    story = Story()
    records = story.snapshot("a", "b") + story.tell("exited", "a") + story.tell("started", "c")
    records += story.snapshot("b", "c")
    assert fold(records[begin:]) == fold(records)


def test_sources_do_not_mix(fold: Fold) -> None:
    records = Story(engine="one").snapshot("a") + Story(engine="two").snapshot("b")
    assert {source[1]: set(here) for source, here in fold(records).items()} == {"one": {"a"}, "two": {"b"}}


def test_unknown_types_change_nothing(fold: Fold) -> None:
    story = Story()
    records = story.snapshot("a")
    (unknown,) = story.tell("started", "b")
    assert set(fold([*records, unknown | {"type": "created"}])[SOURCE]) == {"a"}


# --- the check for gaps ---

Gaps = Callable[[Iterable[dict[str, Any]]], Iterable[tuple[Any, ...]]]


@pytest.fixture
def gaps() -> Gaps:
    (code,) = blocks(RELIABILITY, "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (it is ours)
    return names["gaps"]  # type: ignore[no-any-return]


PREVIOUS = Previous(1, 5)


def epochs(previous: Previous | None = PREVIOUS) -> Documents:
    """Return the records of two epochs, five each; the second one names ``previous``."""
    first, second = Story(), Story(epoch=2, previous=previous)
    records = first.snapshot("a", "b") + first.tell("exited", "a")
    return records + second.snapshot("b") + second.tell("started", "c") + second.tell("exited", "c")


def lost(record: dict[str, Any], first: int) -> dict[str, Any]:
    """Return the record that stands for those from ``first`` to ``record``."""
    loss = {"epoch": record["epoch"], "first": first, "last": record["sequence"], "reason": "overflow"}
    return record | {"type": "lost", "snapshot": None, "lost": loss}


def test_gaps_finds_none_in_complete_records(gaps: Gaps) -> None:
    records = epochs()
    assert list(gaps(records)) == []
    assert list(gaps(records[2:])) == []
    assert list(gaps([*records[:4], *records[1:]])) == []  # repetitions
    assert list(gaps([*records[:4], records[3] | {"type": "heartbeat"}, *records[4:]])) == []


@pytest.mark.parametrize("missing", range(1, 9))
def test_gaps_finds_each_missing_record(missing: int, gaps: Gaps) -> None:
    records = epochs()
    before, after = (records[each] for each in (missing - 1, missing + 1))
    found = [(SOURCE, (before["epoch"], before["sequence"]), (after["epoch"], after["sequence"]), None)]
    assert list(gaps(records[:missing] + records[missing + 1 :])) == found


def test_gaps_reports_a_new_epoch_that_does_not_name_the_one_before(gaps: Gaps) -> None:
    assert list(gaps(epochs(previous=None))) == [(SOURCE, (1, 5), (2, 1), None)]


def test_gaps_reports_the_reason_of_lost_records(gaps: Gaps) -> None:
    records = epochs()
    found = list(gaps([*records[:1], lost(records[3], first=2), *records[4:]]))
    assert found == [(SOURCE, (1, 1), (1, 4), "overflow")]
    assert list(gaps([*records[:1], lost(records[3], first=3), *records[4:]])) == [
        *found,
        (SOURCE, (1, 1), (1, 3), None),
    ]


# --- examples ---


def test_examples_are_records() -> None:
    examples = [example for page in PAGES for example in blocks(page.read_text(), "json")]
    assert len(examples) > len(blocks(EVENTS, "json")) > 1
    for example in examples:
        jsonschema.Draft202012Validator(events.json_schema()).validate(json.loads(example))
        record = msgspec.json.decode(example, type=events.EventRecord)
        assert json.loads(msgspec.json.encode(record)) == json.loads(example)


def test_every_field_and_type_is_documented() -> None:
    names = {*events.EventRecord.__struct_fields__, *events.Container.__struct_fields__}
    names |= {*events.Snapshot.__struct_fields__, *events.Pod.__struct_fields__, *events.Exit.__struct_fields__}
    names |= {*get_args(events.RecordType), *get_args(events.Reason), *get_args(events.LossReason)}
    assert [name for name in sorted(names) if f"`{name}`" not in EVENTS and f'"{name}"' not in EVENTS] == []


# --- commands ---


def test_what_is_to_be_typed_is_in_blocks_that_tests_look_at() -> None:
    """test_documented_commands.py types them."""
    for page in PAGES:
        for block in blocks(page.read_text(), ""):
            assert not re.search(r"^(\$ |whalebridge |make |nats |kubectl |helm )", block, re.MULTILINE), page


def test_documented_commands_and_their_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [command.text for page in PAGES for command in commands(page) if command.text.startswith("whalebridge ")]
    documented = [shlex.split(line.partition("|")[0].partition(" > ")[0])[1:] for line in lines]
    assert ["run"] in documented
    for command in documented:
        assert execute([command[0], "--help"]) == 0
        told = capsys.readouterr().out
        assert [flag for flag in command if flag.startswith("--") and f"{flag} " not in told] == []


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        documented = set(re.findall(r"(?:`|\$ )make ([a-z-]+)\b", page.read_text()))
        assert documented - targets == set(), page


# --- settings ---

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))


def load_text(text: str, folder: Path) -> Settings:
    path = folder / "config.yaml"
    path.write_text(text)
    return load(path=str(path))


def test_the_reference_is_up_to_date(tmp_path: Path) -> None:
    page = tmp_path / "configuration.md"
    page.write_text(CONFIGURATION)
    assert reference.main(page, check=True) == 0
    page.write_text(CONFIGURATION.replace("#### `log.level`", "#### `log.lvl`"))
    assert reference.main(page, check=True) == 1
    assert reference.main(page, check=False) == 0
    assert page.read_text() == CONFIGURATION


def test_the_reference_has_every_setting_with_its_variable_and_flag() -> None:
    for path in suggestions.all_paths(Settings):
        if path != "sinks.ID.type":
            assert f"\n#### `{path}`\n" in CONFIGURATION
            assert f"`{variable(path)}`" in CONFIGURATION


def test_the_flags_that_messages_and_the_reference_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "--help"]) == 0
    told = capsys.readouterr().out
    assert [flag for flag in FLAGS.values() if f"{flag} " not in told] == []
    assert set(FLAGS) <= set(suggestions.all_paths(Settings))


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_configuration_in_documents_is_accepted(path: Path, tmp_path: Path) -> None:
    for block in blocks(path.read_text(), "yaml"):
        load_text(block, tmp_path)


def test_documented_variables_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line for text in (README, CONFIGURATION) for block in blocks(text, "console") for line in block.split("\n")
    ]
    lines += [f"$ export {line}" for line in blocks(INSTALL, "ini")[0].splitlines()]
    for line in lines:
        with monkeypatch.context() as environment:
            for assignment in shlex.split(line.removeprefix("$ export "), comments=True):
                if line.startswith("$ export "):
                    environment.setenv(*assignment.split("=", 1))
            sink = "{type: kafka, topic: t, bootstrap_servers: h, auth: {username: u, password_file: /f}}"
            load_text(f"sinks: {{main: {sink}}}", tmp_path)


def test_documented_mistakes_are_what_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "#\nlog:\n  levl: debug\n\nsinks:\n  # needs a topic\n  main:\n    type: kafka\n    bootstrap_servers: [h]\n"
    )
    monkeypatch.setenv("WHALEBRIDGE_SINKS__MAIN__TLS__ENABLED", "perhaps")
    with pytest.raises(SettingsError) as caught:
        load({"snapshot": {"interval": "3"}}, str(path))
    documented = CONFIGURATION.partition("\n```\nwhalebridge: ")[2].partition("```")[0]
    told = [f"whalebridge: {mistake}".replace(str(path), config_file.DEFAULT) for mistake in caught.value.errors]
    assert sorted(told) == sorted(f"whalebridge: {documented}".splitlines())


def test_there_are_the_examples_that_are_asked_for() -> None:
    assert [path.stem for path in EXAMPLES] == ["both", "filters", "kafka", "nats", "stdout"]
    assert [path.name for path in EXAMPLES if f"config/examples/{path.name}" not in CONFIGURATION] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted_as_they_stand(path: Path) -> None:
    types = {
        "stdout": ["stdout"],
        "kafka": ["kafka"],
        "nats": ["nats"],
        "both": ["kafka", "nats"],
        "filters": ["kafka"],
    }
    assert [sink.type for sink in load(path=str(path)).sinks.values()] == types[path.stem]
    assert path.read_text().startswith("# yaml-language-server: $schema=")


# --- links ---


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


# --- layout ---


def test_architecture_lists_every_module() -> None:
    layout = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Layout\n")[2].partition("\n## ")[0]
    packages = re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", layout, re.MULTILINE)
    documented = {package + name for package, modules in packages for name in re.findall(r"`(\w+\.py)`", modules)}
    paths = [path for top in ("bridge", "sinks", "config") for path in (ROOT / top).rglob("*.py")]
    modules = [path for path in paths if not path.name.startswith("__") and not path.stem.endswith("_pb2")]
    assert documented == {str(path.relative_to(ROOT)) for path in modules}
