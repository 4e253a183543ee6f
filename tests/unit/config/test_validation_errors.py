"""Test that each error about invalid settings starts with its location and path, and shows no value.

The texts are in tests/golden/settings_errors.txt.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from config.settings import Settings, SettingsError, load
from config.sources.yaml import MAX_BYTES
from tests.golden import Golden

CANARY = "canary-7f3a"
ConfigFile = Callable[[str | bytes], str]
KAFKA: dict[str, Any] = {"type": "kafka", "bootstrap_servers": "h1:9092", "topic": "events"}
AUTH = {"mechanism": "plain", "username": "u", "password": CANARY}
NATS: dict[str, Any] = {"type": "nats", "servers": ["n1:4222"], "subject_prefix": "events"}
HTTP: dict[str, Any] = {"type": "http", "url": "http://h/events"}
TLS = {"enabled": True, "cert_file": "/c"}

INVALID_FILES: list[tuple[str | bytes, str]] = [
    ("log:\n\tlevel: info", "FILE:2"),
    ("- a", "FILE:1"),
    (CANARY, "FILE:1"),
    ("log: {level: info}\nlog: {level: info}", "FILE:2: log"),
    (b"#\nhost: \xff", "FILE:2"),
    ("#\nhost: a\0b", "FILE:2"),
    ("host: a\n---\nhost: b", "FILE:2"),
    (f"host: *{CANARY}", "FILE:1"),
    (f"host: !{CANARY}", "FILE:1: host"),
    (f"host: !{CANARY}! x", "FILE:1"),
    ("host: !!binary aGk=", "FILE:1: host"),
    ("host: !!python/object/apply:os.abort []", "FILE:1: host"),
    (f"host: %{CANARY}", "FILE:1"),
    (f"host: a: {CANARY}", "FILE:1"),
    (f'host: "{CANARY}', "FILE:1"),
    (f'host: "\\{CANARY}"', "FILE:1"),
    (f"sinks: [{CANARY}", "FILE:1"),
    ("log:\n    level: info\n  format: json", "FILE:3"),
    (f"log:\n  level: info\n{CANARY}\nhost: a", "FILE:4"),
    ("a: &a [*a]", "FILE:1"),
    ("a: " + "[" * 40, "FILE:1"),
    ("? [a]\n: b", "FILE:1"),
    ("sinks:\n  a: &a {type: stdout}\n  b:\n    <<: *a", "FILE:4: sinks.b"),
    ("log: [a]", "FILE:1: log"),
    ("host: [a]", "FILE:1: host"),
    ("host:", "FILE:1: host"),
    ("heartbeat: {interval: }", "FILE:1: heartbeat.interval"),
    ("heartbeat: {interval: 0s}", "FILE:1: heartbeat.interval"),
    ("http: {listen: 9469}", "FILE:1: http.listen"),
    ("http: {listen: '127.0.0.1:65536'}", "FILE:1: http.listen"),
    ("http: {listen: 'node..example:9469'}", "FILE:1: http.listen"),
    ("namespaces: {include: {a: b}}", "FILE:1: namespaces.include"),
    ("outbox: {max_records: 1e6}", "FILE:1: outbox.max_records"),
    ("containers: {kinds: []}", "FILE:1: containers.kinds"),
    ("containers: {additional_events: [started]}", "FILE:1: containers.additional_events.0"),
    ("containers: {labels: {include: [=x]}}", "FILE:1: containers.labels.include.0"),
    ("level: debug", "FILE:1: level"),
    ("Host: a", "FILE:1: Host"),
    ("x: a", "FILE:1: x"),
    (f"log: {{level:{CANARY}}}", "FILE:1: log.level..."),
    ("attributes: cluster", "FILE:1: attributes"),
    ("attributes: {cluster: [a]}", "FILE:1: attributes.cluster"),
    ("attributes: {cluster: }", "FILE:1: attributes.cluster"),
    ("attributes: {cluster: ''}", "FILE:1: attributes.cluster"),
    (f"attributes: {{cluster: {'x' * 129}}}", "FILE:1: attributes.cluster"),
    ('attributes: {cluster: "a\\tb"}', "FILE:1: attributes.cluster"),
    *(
        (f"attributes: {{'{name}': a}}", f"FILE:1: attributes.{name}")
        for name in ("Cluster", "my_rack", "1a", "", "a" * 21)
    ),
    *((f"attributes: {{{name}: a}}", f"FILE:1: attributes.{name}") for name in ("id", "data", "subject")),
    ("attributes: {" + ", ".join(f"a{n}: x" for n in range(17)) + "}", "FILE:1: attributes"),
    ("sinks: [kafka://h/t]", "FILE:1: sinks"),
    ("sinks:\n  - type: kafka\n    topic: t", "FILE:1: sinks"),
    ("sinks: {}", "FILE:1: sinks"),
    ("sinks: 5", "FILE:1: sinks"),
    ("sinks:", "FILE:1: sinks"),
    ("sinks: {type: kafka, topic: t}", "FILE:1: sinks.type"),
    ("sinks:\n  stdout:", "FILE:2: sinks.stdout"),
    ("sinks: {a: [b]}", "FILE:1: sinks.a"),
    ("sinks: {a: {}}", "FILE:1: sinks.a.type"),
    ("sinks: {a: {typ: kafka}}", "FILE:1: sinks.a.type"),
    ("sinks: {a: {type: kafak}}", "FILE:1: sinks.a.type"),
    ("sinks: {a: {type: stdout, topic: t}}", "FILE:1: sinks.a.topic"),
    ("sinks: {a: {type: stdout, heartbeats: maybe}}", "FILE:1: sinks.a.heartbeats"),
    *((f"sinks: {{'{id_}': {{type: stdout}}}}", f"FILE:1: sinks.{id_}") for id_ in ("Main", "1", "a__b", "a-", "")),
    (f"sinks: {{{'a' * 64}: {{type: stdout}}}}", "FILE:1: sinks.aaa"),
    (f"sinks: {{'a {CANARY}': {{type: stdout}}}}", "FILE:1: sinks.a..."),
    # former names of settings
    ("containers: {extras: [oom]}", "FILE:1: containers.extras"),
    ("outbox: {max_memory_bytes: 1048576}", "FILE:1: outbox.max_memory_bytes"),
    ("http: {token: x}", "FILE:1: http.token"),
    ("sinks: {a: {type: file, path: /x, keep: 1}}", "FILE:1: sinks.a.keep"),
    ("a: " + "x" * MAX_BYTES, "FILE"),
]

INVALID_KAFKA_URLS = (
    "kafka:",
    "kafka:h1/events",
    "kafka://",
    "kafka://h1:1",
    "kafka://h1:1/",
    "kafka:///events",
    "kafka://h1:1/events?acks=1",
    "kafka://h1:1/events#x",
    f"kafka://user:{CANARY}@h1:1/events",
    f"kafkas://{CANARY}@h1:1,h2:1/events",
)
INVALID_NATS_URLS = (
    "nats:",
    "nats://n1:4222",
    "nats://n1:4222/",
    "nats:///events",
    "nats://n1/events?x=y",
    "nats:n1/events",
    f"nats://user:{CANARY}@n1:4222/events",
)
INVALID_HTTP_URLS = (
    "http://",
    "https:///events",
    "http://h:0/events",
    "http://h:65536/events",
    "http://a..b/events",
    "http://h/a b",
    "http://h/größe",
    "http://h/events#x",
    f"http://user:{CANARY}@h/events",
    f"http://{CANARY}@h/events",
)
IMPOSSIBLE_NAMESPACES = ("/x", "x/*", "[a", "a]", "[]", "[ab/]", "-x", "x-", "a..b", "é*", "x" * 77, "*" + "x" * 77)

INVALID_FLAGS: list[tuple[dict[str, Any], str]] = [
    ({"snapshot": {"interval": "6"}}, "--snapshot-interval: snapshot.interval"),
    ({"snapshot": {"interval": "6.5h"}}, "--snapshot-interval: snapshot.interval"),
    ({"snapshot": {"interval": "0s"}}, "--snapshot-interval: snapshot.interval"),
    ({"snapshot": {"interval": "31d"}}, "--snapshot-interval: snapshot.interval"),
    ({"log": {"level": "loud"}}, "--log-level: log.level"),
    ({"containerd": {"address": "tcp://127.0.0.1:1"}}, "--containerd: containerd.address"),
    ({"containerd": {"address": "run/c.sock"}}, "--containerd: containerd.address"),
    ({"containerd": {"address": ""}}, "--containerd: containerd.address"),
    ({"containerd": {"address": "/" + "x" * 107}}, "--containerd: containerd.address"),
    ({"namespaces": {"include": [""]}}, "--namespace: namespaces.include"),
    ({"namespaces": {"include": ["default", "a,hello world"]}}, "--namespace: namespaces.include.2"),
    ({"namespaces": {"exclude": ["/x"]}}, "--exclude-namespace: namespaces.exclude.0"),
    *(({"namespaces": {"include": glob}}, "--namespace: namespaces.include.0") for glob in IMPOSSIBLE_NAMESPACES),
    ({"namespaces": {"include": []}}, "--namespace: namespaces.include"),
    ({"namespaces": {"include": ' ["a", "b"]'}}, "--namespace: namespaces.include"),
    ({"state_dir": "x"}, "--state-dir: state_dir"),
    ({"sinks": []}, "--sink: sinks"),
    ({"sinks": ["stdout:", "stdout:"]}, "--sink: sinks"),
    ({"sinks": ["main=stdout:", "main=file:/x"]}, "--sink: sinks"),
    ({"sinks": ["kafka://h/t", "kafkas://h/t"]}, "--sink: sinks"),
    ({"sinks": ["stdout"]}, "--sink: sinks"),
    ({"sinks": ["main=stdout"]}, "--sink: sinks.main"),
    ({"sinks": ["Main=stdout:"]}, "--sink: sinks.Main"),
    ({"sinks": ["=stdout:"]}, "--sink: sinks."),
    ({"sinks": ["kafak://h/t"]}, "--sink: sinks.kafak"),
    ({"sinks": ["stdout:x"]}, "--sink: sinks.stdout"),
    ({"sinks": ["main=kafka://h:1/t?acks=1"]}, "--sink: sinks.main"),
    ({"sinks": ["kafka://h:1/a/b"]}, "--sink: sinks.kafka.topic"),
    ({"sinks": ["kafka://h:99999/t"]}, "--sink: sinks.kafka.bootstrap_servers.0"),
    *(({"sinks": [url]}, "--sink: sinks.kafka") for url in INVALID_KAFKA_URLS),
    *(({"sinks": [url]}, "--sink: sinks.nats") for url in INVALID_NATS_URLS),
    *(({"sinks": [url]}, "--sink: sinks.http.url") for url in INVALID_HTTP_URLS),
    *(({"sinks": [url]}, "--sink: sinks.http") for url in ("http:", "http:h/events")),
    *(({"sinks": [url]}, "--sink: sinks.file") for url in ("file:", "file://", "file://host/path")),
    ({"sinks": ["a=file:/v", "b=file:/v"]}, "--sink: sinks"),
    ({"host": "a b"}, "host"),
    ({"host": ""}, "host"),
    ({"containers": {"names": {"include": []}}}, "containers.names.include"),
    ({"containers": {"projects": {"include": ""}}}, "containers.projects.include"),
    ({"log": "debug"}, "log"),
    ({"lgo": {"level": "debug"}}, "lgo"),
]

INVALID_ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"WHALEBRIDGE_LOG_LEVEL": CANARY}, "WHALEBRIDGE_LOG_LEVEL"),
    ({"WHALEBRIDGE_STATE_DR": CANARY}, "WHALEBRIDGE_STATE_DR"),
    ({"WHALEBRIDGE_STATEDIR": CANARY}, "WHALEBRIDGE_STATEDIR"),
    ({"WHALEBRIDGE_SINK": CANARY}, "WHALEBRIDGE_SINK"),
    ({"WHALEBRIDGE_SINKS_MAIN_TOPIC": CANARY}, "WHALEBRIDGE_SINKS_MAIN_TOPIC"),
    ({"WHALEBRIDGE_SINKS_MAIN_AUTH_PASSWORD_FILE": CANARY}, "WHALEBRIDGE_SINKS_MAIN_AUTH_PASSWORD_FILE"),
    ({"WHALEBRIDGE_LGO__LEVEL": CANARY}, "WHALEBRIDGE_LGO__LEVEL: lgo"),
    ({"WHALEBRIDGE_LOG": "debug", "WHALEBRIDGE_LOG__LEVEL": "info"}, "WHALEBRIDGE_LOG__LEVEL"),
    ({"WHALEBRIDGE_SINKS": "stdout:", "WHALEBRIDGE_SINKS__MAIN__TYPE": "file"}, "WHALEBRIDGE_SINKS__MAIN__TYPE"),
    ({"WHALEBRIDGE_SINKS": "stdout: stdout:"}, "WHALEBRIDGE_SINKS: sinks"),
    ({"WHALEBRIDGE_SINKS": "[kafka://h/t]"}, "WHALEBRIDGE_SINKS: sinks"),
    ({"WHALEBRIDGE_SINKS__0__TYPE": "stdout"}, "WHALEBRIDGE_SINKS__0__TYPE: sinks.0"),
    ({"WHALEBRIDGE_SINKS__MAIN__AUTH__USERNAME": "u"}, "WHALEBRIDGE_SINKS__MAIN__AUTH__USERNAME: sinks.main.type"),
    ({"WHALEBRIDGE_NAMESPACES__INCLUDE__0": "x"}, "WHALEBRIDGE_NAMESPACES__INCLUDE__0: namespaces.include"),
]

INVALID_KAFKA_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"bootstrap_servers": []}, "bootstrap_servers"),
    ({"bootstrap_servers": "h:0"}, "bootstrap_servers.0"),
    ({"bootstrap_servers": "h:65536"}, "bootstrap_servers.0"),
    ({"bootstrap_servers": "h..example:1"}, "bootstrap_servers.0"),
    ({"bootstrap_servers": f"u:{CANARY}@h:1"}, "bootstrap_servers.0"),
    ({"bootstrap_servers": "http://h:1"}, "bootstrap_servers.0"),
    ({"topic": "a b"}, "topic"),
    ({"topic": ".."}, "topic"),
    ({"topic": "x" * 250}, "topic"),
    ({"state_topic": "events"}, ""),
    ({"state_topic": "state", "encoding": "whalewatcher"}, ""),
    ({"topic": "__consumer_offsets"}, "topic"),
    ({"topic": "a.b", "state_topic": "a_b"}, ""),
    ({"partitions": 0}, "partitions"),
    ({"replication_factor": 0}, "replication_factor"),
    ({"compression": "brotli"}, "compression"),
    ({"cloudevents": "yes"}, "cloudevents"),
    ({"encoding": "xml"}, "encoding"),
    ({"encoding": "otlp", "cloudevents": "structured"}, ""),
    ({"request_timeout": "30"}, "request_timeout"),
    ({"request_timeout": "11m"}, "request_timeout"),
    ({"max_request_size": 1}, "max_request_size"),
    ({"acks": 1}, "acks"),
    ({"tls": {"ca_file": "/ca"}}, "tls"),
    ({"tls": {"enabled": True, "key_file": "/k"}}, "tls"),
    ({"tls": {"enabled": True, "key_password": CANARY}}, "tls"),
    ({"tls": TLS | {"key_password": CANARY, "key_password_file": "/p"}}, "tls"),
    ({"tls": TLS | {"handshake_first": True}}, "tls.handshake_first"),
    ({"auth": {"mechanism": "plain"}}, "auth"),
    ({"auth": {"mechanism": "gssapi"}}, "auth.mechanism"),
    ({"auth": {"mechanism": "plain", "username": "u"}}, "auth"),
    ({"auth": {"pasword": CANARY, "username": "u"}}, "auth.pasword"),
    ({"auth": AUTH | {"password": ""} | {"password_file": "p"}}, "auth.password_file"),
    ({"auth": AUTH | {"password_file": "/p"}}, "auth"),
    ({"auth": AUTH | {"token_file": "/t"}}, "auth"),
    ({"auth": {"mechanism": "oauthbearer"}}, "auth"),
    ({"auth": AUTH | {"mechanism": "oauthbearer", "token_file": "/t"}}, "auth"),
    ({"auth": AUTH | {"token_command": ["/t"]}}, "auth"),
    ({"auth": {"mechanism": "oauthbearer", "token_file": "/t", "token_command": ["/t"]}}, "auth"),
    ({"auth": {"mechanism": "oauthbearer", "token_command": []}}, "auth.token_command"),
    ({"auth": {"mechanism": "oauthbearer", "token_command": f"sh,{CANARY}"}}, "auth.token_command"),
    ({"auth": {"mechanism": "oauthbearer", "token_command": ["/t", f"\0{CANARY}"]}}, "auth.token_command"),
    # former names of settings
    ({"name": "main"}, "name"),
    ({"servers": ["h"]}, "servers"),
    ({"create": False}, "create"),
    ({"replicas": 3}, "replicas"),
    ({"timeout": "30s"}, "timeout"),
    ({"sasl": {"username": CANARY}}, "sasl"),
]

INVALID_PREFIXES = ("", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "größe", "a\n", "x" * 256)
INVALID_TEMPLATES = (
    *("", "{id}", "{host", "{host}.", "a{host}", "{host}{type}", "{host!r}", "{host:>9}", "{0}", "{}", "*", "a b"),
    "{host}.{host}",
)

INVALID_NATS_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"servers": []}, "servers"),
    ({"servers": [f"nats://u:{CANARY}@h:1"]}, "servers.0"),
    *(({"subject_prefix": prefix}, "subject_prefix") for prefix in INVALID_PREFIXES),
    *(({"subject_template": template}, "subject_template") for template in INVALID_TEMPLATES),
    ({"stream": {"name": "a.b"}}, "stream.name"),
    ({"kv_bucket": {"name": "a b"}}, "kv_bucket.name"),
    ({"domain": ">"}, "domain"),
    ({"inbox_prefix": "_INBOX.*"}, "inbox_prefix"),
    ({"stream": {"replicas": 6}}, "stream.replicas"),
    ({"stream": {"max_age": "1s"}}, "stream.max_age"),
    ({"stream": {"duplicate_window": "1m"}}, "stream.duplicate_window"),
    ({"stream": {"duplicate_window": "2h", "max_age": "1h"}}, "stream"),
    ({"stream": {"name": "KV_x"}, "kv_bucket": {"name": "x"}}, ""),
    ({"subject_prefix": "x" * 244}, ""),
    ({"subject_prefix": "_INBOX"}, ""),
    ({"subject_prefix": "a.b", "inbox_prefix": "a"}, ""),
    ({"kv_bucket": {"name": "x" * 253}}, "kv_bucket.name"),
    ({"timeout": "10"}, "timeout"),
    ({"mode": "other"}, "mode"),
    ({"mode": "core", "kv_bucket": {"name": "x"}}, ""),
    ({"encoding": "whalewatcher", "kv_bucket": {"name": "x"}}, ""),
    ({"tls": {"handshake_first": True}}, "tls"),
    ({"auth": {"user": "u"}}, "auth"),
    ({"auth": {"password": CANARY}}, "auth"),
    ({"auth": {"user": "u", "password": CANARY, "password_file": "/p"}}, "auth"),
    ({"auth": {"token": CANARY, "token_file": "/t"}}, "auth"),
    ({"auth": {"token_file": "/t", "token_command": "/t"}}, "auth"),
    ({"auth": {"user": "u", "password": CANARY, "token_command": "/t"}}, "auth"),
    ({"auth": {"nkey_seed": CANARY, "nkey_seed_file": "/n"}}, "auth"),
    ({"auth": {"token": CANARY, "creds_file": "/c"}}, "auth"),
    ({"auth": {"creds_file": f"---- JWT {CANARY}"}}, "auth.creds_file"),
    ({"auth": {"tokn": CANARY}}, "auth.tokn"),
    # former names of settings
    ({"subject": "s"}, "subject"),
    ({"template": "{host}"}, "template"),
    ({"inbox": "_INBOX"}, "inbox"),
    ({"handshake_first": True}, "handshake_first"),
    ({"bucket": {"name": "b"}}, "bucket"),
    ({"login": {"token": CANARY}}, "login"),
    ({"stream": {"create": False}}, "stream.create"),
]

INVALID_HTTP_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"url": f"ftp://{CANARY}"}, "url"),
    ({"url": ""}, "url"),
    ({"cloudevents": "batch"}, "cloudevents"),
    ({"encoding": "otlp"}, ""),
    ({"encoding": "otlp", "cloudevents": "batched"}, ""),
    ({"tls": {"ca_file": "/ca.pem"}}, ""),
    ({"tls": {"enabled": True}}, "tls.enabled"),
    ({"url": "https://h/", "tls": {"key_file": "/k"}}, "tls"),
    ({"auth": {"user": "a:b", "password": CANARY}}, "auth"),
    ({"auth": {"user": "u", "password": CANARY, "token_file": "/t"}}, "auth"),
    ({"auth": {"nkey_seed": CANARY}}, "auth.nkey_seed"),
    ({"headers": {"Authorization": CANARY}}, "headers.Authorization"),
    ({"headers": {"content-type": "x"}}, "headers.content-type"),
    ({"headers": {"Idempotency-Key": "x"}}, "headers.Idempotency-Key"),
    ({"headers": {"Host": "x"}}, "headers.Host"),
    ({"headers": {"ce-id": "x"}}, "headers.ce-id"),
    ({"headers": {"X-A": f"{CANARY}\r\nX-B: c"}}, "headers.X-A"),
    ({"headers": {"X-A": ""}}, "headers.X-A"),
    ({"headers": {"X-A": "b", "x-a": "c"}}, "headers"),
    ({"user_agent": "a\nb"}, "user_agent"),
    ({"max_batch_records": 0}, "max_batch_records"),
    ({"max_batch_bytes": 100_000}, ""),
    ({"max_record_bytes": 1}, "max_record_bytes"),
    ({"timeout": "0s"}, "timeout"),
]

INVALID_SINKS: list[tuple[dict[str, Any], str]] = [
    *((KAFKA | settings, f"sinks.main.{path}".rstrip(".")) for settings, path in INVALID_KAFKA_SETTINGS),
    *((NATS | settings, f"sinks.main.{path}".rstrip(".")) for settings, path in INVALID_NATS_SETTINGS),
    *((HTTP | settings, f"sinks.main.{path}".rstrip(".")) for settings, path in INVALID_HTTP_SETTINGS),
    *(({"type": "file", "path": path}, "sinks.main.path") for path in ("x", "", "/v/", "/a\nb")),
    ({"type": "file", "path": "/a", "encoding": "otlp"}, "sinks.main.encoding"),
    ({"type": "stdout", "encoding": "OTLP"}, "sinks.main.encoding"),
]


def errors(given: dict[str, Any] | None = None, path: str | None = None) -> list[str]:
    """Load invalid settings and return the errors; check that the exception does not show the canary."""
    with pytest.raises(SettingsError) as caught:
        load(given, path)
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None), "they contain the input"
    return [error.replace(path, "FILE") if path else error for error in caught.value.errors]


def test_errors_start_with_location_and_match_golden_file(
    config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    blocks = [(str(text)[:120], location, errors(path=config_file(text))) for text, location in INVALID_FILES]
    blocks += [(str(flags), location, errors(flags)) for flags, location in INVALID_FLAGS]
    for environment, location in INVALID_ENVIRONMENTS:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            title = " ".join(f"{name}={value!r}" for name, value in environment.items())
            blocks.append((title, location, errors()))
    for sink, path in INVALID_SINKS:
        messages = [error.removeprefix("--sink: ") for error in errors({"sinks": {"main": sink}})]
        blocks.append((str(sink), path, messages))
    for _, location, messages in blocks:
        first = messages[0].removeprefix(location)
        assert first.startswith(": ") or location.endswith("aaa"), (messages, location)
    golden("settings_errors", "\n".join("\n".join([f"> {title!r}", *texts, ""]) for title, _, texts in blocks))


def test_all_settings_errors_are_reported_with_locations(
    config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(
        "log:\n  levl: debug\n\nsinks:\n  main:\n    type: kafka\n    bootstrap_servers: h\n    auth:\n"
        f"      username: u\n      pasword: {CANARY}\nhost: {CANARY}/\nhost: b\n"
    )
    monkeypatch.setenv("WHALEBRIDGE_SINKS__MAIN__AUTH__MECHANISM", "plane")
    monkeypatch.setenv("WHALEBRIDGE_LOG_LEVEL", CANARY)
    messages = errors({"snapshot": {"interval": CANARY}, "state_dir": "x"}, path)
    assert [error.rpartition(": ")[0] for error in messages] == [
        "FILE:12: host",
        "WHALEBRIDGE_LOG_LEVEL",
        "FILE:11: host",
        "FILE:5: sinks.main.topic",
        "WHALEBRIDGE_SINKS__MAIN__AUTH__MECHANISM: sinks.main.auth.mechanism",
        "FILE:10: sinks.main.auth.pasword",
        "--snapshot-interval: snapshot.interval",
        "--state-dir: state_dir",
        "FILE:2: log.levl",
    ]


def test_all_errors_of_single_sink_are_reported() -> None:
    sink = {"type": "kafka", "topic": "", "compression": "x", "auth": {"mechanism": "plain"}}
    assert [error.split(": ")[1] for error in errors({"sinks": {"main": sink}})] == [
        "sinks.main.bootstrap_servers",
        "sinks.main.topic",
        "sinks.main.compression",
        "sinks.main.auth",
    ]


def test_errors_of_several_urls_are_reported_separately() -> None:
    assert [error.split(": ")[1] for error in errors({"sinks": ["a:", "b:"]})] == ["sinks.a", "sinks.b"]


def test_error_of_merged_group_names_all_locations(config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_file(f"sinks:\n  a: {{type: nats, servers: h, subject_prefix: s, auth: {{token: {CANARY}}}}}\n")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__A__AUTH__TOKEN_FILE", "/t")
    (error,) = errors(path=path)
    assert error.startswith("WHALEBRIDGE_SINKS__A__AUTH__TOKEN_FILE and FILE:2: sinks.a.auth: ")


def test_error_in_overriding_sinks_names_only_option(config_file: ConfigFile) -> None:
    path = config_file("sinks:\n  main: {type: kafka, bootstrap_servers: h}\n")
    (error,) = errors({"sinks": ["main=kafka:"]}, path)
    assert error.startswith("--sink: sinks.main: ")


def test_yaml_alias_bomb_is_rejected(config_file: ConfigFile) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (error,) = errors(path=config_file("\n".join(lines)))
    assert error.startswith("FILE:1: ")


def test_deeply_nested_yaml_is_rejected(config_file: ConfigFile) -> None:
    (error,) = errors(path=config_file("a: " + "[" * 5000))
    assert error.startswith("FILE:1: ")


@pytest.mark.parametrize("path", ["/nonexistent", "/etc"])
def test_unreadable_configuration_file_is_error_when_named(path: str) -> None:
    (error,) = errors(path=path)
    assert error.startswith("FILE: ")


# --- any content ---

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["kafka", "nats", "h:1", "6h"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Settings.model_fields, "main", "type", "topic", "servers", "tls", "include"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def load_or_fail_with_settings_error(path: Path) -> None:
    """Check that invalid settings raise only a SettingsError, whose errors have locations."""
    error = None
    try:
        load(path=str(path))
    except SettingsError as caught:
        error = caught
    if error:
        assert error.errors
        assert [message for message in error.errors if not message.startswith(str(path))] == []
        assert (error.__cause__, error.__context__) == (None, None)


@given(st.binary() | st.text(alphabet=" \n\t:-[]{}#&*!|>'\"%@`,?ab~=<.0\\").map(str.encode))
@example(b"a: 2026-99-99")
@example(b"a: 1_\n? ? ?")
@example(b"%YAML 9.9\n---\na: b")
@example(b"&a a: *a")
@example(b"<<: [*a]")
@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_content_loads_or_raises_settings_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    load_or_fail_with_settings_error(path)


@given(DOCUMENTS | st.fixed_dictionaries({"sinks": DOCUMENTS}))
@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_yaml_loads_or_raises_settings_error(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    load_or_fail_with_settings_error(path)
