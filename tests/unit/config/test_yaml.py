"""The configuration file: what it means, and what is said of one that means nothing."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from config import file
from config.settings import Settings, SettingsError, load
from config.sinks import KafkaSettings, NatsSettings

CANARY = "canary-7f3a"
SINK = "sinks:\n  - {type: kafka, servers: h, topic: t}\n"
Written = Callable[[str | bytes], str]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def mistakes(path: str, flags: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(flags, path)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return [mistake.replace(path, "FILE") for mistake in caught.value.mistakes]


# --- values ---


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "--- # nothing\n", "null", "log:\nhttp:\n", "\ufeffhost: a"]
)
def test_a_file_may_say_nothing(text: str, written: Written) -> None:
    settings = load({"host": "a"}, written(text))
    assert settings == load({"host": "a"})


def test_values_are_taken_as_they_are_written(written: Written) -> None:
    settings = load(
        path=written(
            """
            host: 007
            heartbeat: {interval: off}
            outbox: {max_records: "5000", max_bytes: 2000000}
            namespaces: {include: [yes, 1e3, 2026-01-01, 1:30, ~x]}
            sinks:
              - type: kafka
                servers: 10.0.0.1:22
                topic: 123
                create: no
                compression: none
                replicas: null
                tls: {enabled: Yes}
                sasl: {mechanism: PLAIN, username: 0x10, password: 0123}
            """
        )
    )
    assert settings.host == "007"
    assert settings.heartbeat.interval is None
    assert (settings.outbox.max_records, settings.outbox.max_bytes) == (5000, 2_000_000)
    assert settings.namespaces.include == ("yes", "1e3", "2026-01-01", "1:30", "~x")
    (sink,) = settings.sinks
    assert isinstance(sink, KafkaSettings)
    assert (sink.topic, sink.servers, sink.create, sink.replicas) == ("123", ("10.0.0.1:22",), False, None)
    assert sink.tls.enabled
    assert sink.sasl
    assert sink.sasl.username == "0x10"
    assert sink.sasl.password
    assert sink.sasl.password.get_secret_value() == "0123"


def test_anchors_are_for_what_sinks_have_in_common(written: Written) -> None:
    text = """
    sinks:
      - {type: kafka, servers: h, topic: t, tls: &tls {enabled: true, ca_file: /ca}}
      - {type: nats, servers: h, subject: s, tls: *tls}
    """
    kafka, nats = load(path=written(text)).sinks
    assert isinstance(kafka, KafkaSettings)
    assert isinstance(nats, NatsSettings)
    assert kafka.tls == nats.tls


# --- over and under it ---


def test_the_environment_overrides_the_file_and_flags_override_both(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("log: {level: error, format: json}\nsnapshot: {interval: 1h}\nnamespaces: {include: [a, b]}\n")
    monkeypatch.setenv("WHALEBRIDGE_LOG__LEVEL", "warning")
    monkeypatch.setenv("WHALEBRIDGE_SNAPSHOT__INTERVAL", "2h")
    settings = load({"snapshot": {"interval": "3h"}, "namespaces": {"include": ["c"]}}, path)
    assert (settings.log.level, settings.log.format) == ("warning", "json")
    assert settings.snapshot.interval == timedelta(hours=3)
    assert settings.namespaces.include == ("c",)


@pytest.mark.parametrize("sink", ["{type: kafka, servers: h, topic: t, sasl: {username: u}}", "kafka://h/t"])
def test_the_environment_reaches_into_the_sinks_of_the_file(
    sink: str, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALEBRIDGE_SINKS__1__SASL__USERNAME", "u")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__1__SASL__PASSWORD_FILE", "/p")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__2", "stdout:")
    first, second, third = load(path=written(f"sinks:\n - nats://h/s\n - {sink}\n")).sinks
    assert isinstance(second, KafkaSettings)
    assert (first.called, second.called, third.called) == ("nats/s", "kafka/t", "stdout")
    assert second.sasl
    assert (second.sasl.username, second.sasl.password_file) == ("u", "/p")


def test_a_whole_list_replaces_that_of_the_file(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(SINK)
    monkeypatch.setenv("WHALEBRIDGE_SINKS", "nats://h/s stdout:")
    assert [sink.type for sink in load(path=path).sinks] == ["nats", "stdout"]
    assert [sink.type for sink in load({"sinks": ["file:/x"]}, path).sinks] == ["file"]


def test_everything_is_read_anew_each_time(written: Written) -> None:
    assert load(path=written("host: a")).host == "a"
    assert load(path=written("host: b")).host == "b"


# --- mistakes ---


def test_every_mistake_has_its_place(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        f"log:\n  levl: debug\n\nsinks:\n  - type: kafka\n    servers: h\n    sasl:\n      username: u\n"
        f"      pasword: {CANARY}\nhost: {CANARY}/\nhost: b\n"
    )
    monkeypatch.setenv("WHALEBRIDGE_SINKS__0__SASL__MECHANISM", "plane")
    monkeypatch.setenv("WHALEBRIDGE_LOG_LEVEL", CANARY)
    assert mistakes(path, {"snapshot": {"interval": CANARY}, "state_dir": "x"}) == [
        "FILE:11: host: it is here twice: on line 10 as well",
        "WHALEBRIDGE_LOG_LEVEL: there is no such setting; did you mean WHALEBRIDGE_LOG__LEVEL?",
        'FILE:10: host: a host name has no spaces, and none of / " % in it; set it to what the node is called',
        "FILE:5: sinks.0.topic: this setting is needed, and not there",
        "WHALEBRIDGE_SINKS__0__SASL__MECHANISM: sinks.0.sasl.mechanism: "
        "it should be 'plain', 'scram-sha-256', 'scram-sha-512' or 'oauthbearer'",
        "FILE:9: sinks.0.sasl.pasword: there is no such setting; did you mean password?",
        "--snapshot-interval: snapshot.interval: "
        "write a whole number and its unit (s, m, h or d), such as 90s, 15m or 6h",
        "--state-dir: state_dir: write the absolute path of a directory, such as /var/lib/whalebridge",
        "FILE:2: log.levl: there is no such setting; did you mean level?",
    ]


def test_a_group_that_is_wrong_as_a_whole_names_all_its_places(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("http:\n  token_file: /t\n")
    monkeypatch.setenv("WHALEBRIDGE_HTTP__TOKEN", CANARY)
    assert mistakes(path) == ["WHALEBRIDGE_HTTP__TOKEN and FILE:1: http: set one of token and token_file, not both"]


def test_a_list_that_replaces_another_has_its_mistakes_to_itself(written: Written) -> None:
    assert mistakes(written(SINK), {"sinks": ["kafka:"]})[0].startswith("--sink: sinks.0: write it as kafka://")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("log:\n\tlevel: info", "FILE:2: there is a tab: indent with spaces"),
        ("- a", "FILE:1: write settings as NAME: VALUE, each on a line of its own"),
        (CANARY, "FILE:1: write settings as NAME: VALUE, each on a line of its own"),
        ("log: {level: info}\nlog: {level: info}", "FILE:2: log: it is here twice: on line 1 as well"),
        (b"#\nhost: \xff", "FILE:2: this is not UTF-8"),
        ("#\nhost: a\0b", "FILE:2: there is a character that no YAML file may contain"),
        ("host: a\n---\nhost: b", "FILE:2: there is a second document: one file holds one"),
        (f"host: *{CANARY}", "FILE:1: there is an alias (*) of nothing; a value that begins with"),
        (f"host: !{CANARY}", "FILE:1: host: settings have no tags; a value that begins with one of * & ! is written"),
        (f"host: !{CANARY}! x", "FILE:1: a value that begins with one of * & ! is written in quotes"),
        ("host: !!binary aGk=", "FILE:1: host: settings have no tags"),
        ("host: !!python/object/apply:os.abort []", "FILE:1: host: settings have no tags"),
        (f"host: %{CANARY}", "FILE:1: a value that begins with one of % @ ` is written in quotes"),
        (f"host: a: {CANARY}", "FILE:1: there is a colon where none can be"),
        (f'host: "{CANARY}', "FILE:1: a quote is not closed before the end"),
        (f'host: "\\{CANARY}"', "FILE:1: this is not YAML"),
        (f"sinks: [{CANARY}", "FILE:1: a bracket is not closed, or a comma is missing"),
        ("log:\n    level: info\n  format: json", "FILE:3: this line is not indented like those that it belongs to"),
        (f"log:\n  level: info\n{CANARY}\nhost: a", "FILE:4: there is a name without a colon"),
        ("a: &a [*a]", "FILE:1: aliases make it unfold to more than 10000 values"),
        ("a: " + "[" * 5000, "FILE:1: there are more than 32 levels"),
        ("? [a]\n: b", "FILE:1: a name is plain text"),
        (
            "sinks:\n  - &a {type: file}\n  - <<: *a",
            "FILE:3: sinks.1: nothing can be merged in: write out",
        ),
        ("sinks:\n  - stdout:", "FILE:2: sinks.0: write 'stdout:' in quotes, as it ends in a colon, or type: stdout"),
        ("log: [a]", "FILE:1: log: this is a group of settings, it has no value of its own"),
        ("host: [a]", "FILE:1: host: write text, not a list or a group"),
        ("host:", "FILE:1: host: it has no value: write one, or leave the name out"),
        ("heartbeat: {interval: }", "FILE:1: heartbeat.interval: it has no value: write a duration, or off"),
        ("heartbeat: {interval: 0s}", "FILE:1: heartbeat.interval: it must be from 1s to 1d"),
        ("http: {listen: 9469}", "FILE:1: http.listen: write HOST:PORT"),
        ("http: {listen: '127.0.0.1:65536'}", "FILE:1: http.listen: write HOST:PORT"),
        ("http: {token: ''}", "FILE:1: http.token: it is empty"),
        ("namespaces: {include: {a: b}}", "FILE:1: namespaces.include: write a list"),
        ("sinks: {type: kafka}", "FILE:1: sinks: write a list"),
        ("sinks: []", "FILE:1: sinks: name one sink at least"),
        ("sinks:\n  -", "FILE:2: sinks.0: write a sink as a URL, or as a group of settings with a type"),
        ("sinks:\n  - {typ: kafka}", "FILE:2: sinks.0.type: say which type of sink it is"),
        ("outbox: {max_records: 1e6}", "FILE:1: outbox.max_records: write a whole number, in digits"),
        ("sinks: [{type: stdout, heartbeats: maybe}]", "FILE:1: sinks.0.heartbeats: write true or false"),
        ("containers: {kinds: []}", "FILE:1: containers.kinds: name one kind at least"),
        ("containers: {extras: [started]}", "FILE:1: containers.extras.0: it should be 'created', 'deleted'"),
        ("containers: {labels: {include: [=x]}}", "FILE:1: containers.labels.include.0: write a label's KEY"),
        ("level: debug", "FILE:1: level: there is no such setting; did you mean log.level?"),
        ("log.level: debug", "FILE:1: log.level: there is no such setting; write log: and below it, indented, level:"),
        ("Host: a", "FILE:1: Host: there is no such setting; did you mean host?"),
        ("x: a", "FILE:1: x: there is no such setting; there are: host, containerd, "),
        (f"log: {{level:{CANARY}}}", "FILE:1: log.level...: there is no such setting; did you mean level?"),
        ("a: " + "x" * file.LARGEST, "FILE: it is larger than 256 KiB"),
    ],
)
def test_what_is_said_of_a_file(text: str | bytes, told: str, written: Written) -> None:
    assert mistakes(written(text))[0].startswith(told)


def test_a_bomb_of_aliases_is_bounded(written: Written) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert mistakes(written("\n".join(lines))) == ["FILE:1: aliases make it unfold to more than 10000 values"]


def test_items_numbered_with_a_gap_are_told_of(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_SINKS__3__SASL__USERNAME", "u")
    assert mistakes(written(SINK)) == [
        "WHALEBRIDGE_SINKS__3__SASL__USERNAME and FILE:1: sinks: number the items from 0 on, without a gap"
    ]


@pytest.mark.parametrize(("path", "text"), [("/nonexistent", "no such file"), ("/etc", "cannot be read: Is a dir")])
def test_a_file_that_is_named_has_to_be_there(path: str, text: str) -> None:
    (mistake,) = mistakes(path)
    assert text in mistake


# --- whatever is in it ---

YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["kafka", "nats", "h:1", "6h"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Settings.model_fields, "type", "topic", "servers", "tls", "include"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def settle(path: Path) -> None:
    """Wrong settings are a SettingsError that tells its mistakes, and nothing else is raised."""
    error = None
    try:
        load(path=str(path))
    except SettingsError as caught:
        error = caught
    if error:
        assert error.mistakes
        assert [mistake for mistake in error.mistakes if not mistake.startswith(str(path))] == []
        assert (error.__cause__, error.__context__) == (None, None)


@given(st.binary() | st.text(alphabet=" \n\t:-[]{}#&*!|>'\"%@`,?ab~=<.0\\").map(str.encode))
@example(b"a: 2026-99-99")
@example(b"a: 1_\n? ? ?")
@example(b"%YAML 9.9\n---\na: b")
@example(b"&a a: *a")
@example(b"<<: [*a]")
@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_are_more_than_a_mistake(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    settle(path)


@given(YAML)
@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_yaml_is_more_than_a_mistake(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    settle(path)
