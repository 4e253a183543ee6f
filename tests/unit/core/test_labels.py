from __future__ import annotations

import pytest

from bridge.core import labels
from bridge.core.labels import REDACTED, LabelRules
from config.models import LabelsSettings


@pytest.fixture
def usual() -> LabelRules:
    """The rules as they are where nothing is set."""
    settings = LabelsSettings()
    return LabelRules(settings.include, settings.exclude, settings.redact)


@pytest.mark.parametrize(
    "key",
    [
        "com.docker.compose.project",
        "io.kubernetes.pod.name",
        "nerdctl/name",
        "app",
        "author",
        "com.example.compass",
        "",
    ],
)
def test_usual_rules_let_through(usual: LabelRules, key: str) -> None:
    assert usual.apply({key: "value"}) == {key: "value"}


@pytest.mark.parametrize(
    "key",
    [
        "nerdctl/mounts",
        "nerdctl/state-dir",
        "nerdctl/namespace",
        "io.containerd.image.config.stop-signal",
        "org.opencontainers.image.source",
        "maintainer",
        "containerd.io/restart.loguri",
    ],
)
def test_usual_rules_leave_out(usual: LabelRules, key: str) -> None:
    assert usual.apply({key: "value"}) == {}


@pytest.mark.parametrize(
    "key",
    [
        "DB_PASSWORD",
        "db.passwd",
        "db_pass",
        "pass",
        "minio.accesskey",
        "tls.privateKey",
        "com.example.Api-Key",
        "apikey",
        "aws_access_key_id",
        "ssh.private_key",
        "session-token",
        "client_secret",
        "credentials",
        "mail.pwd",
        "key.passphrase",
        "traefik.http.middlewares.x.basicauth.users",
    ],
)
def test_usual_rules_redact_what_looks_like_a_secret(usual: LabelRules, key: str) -> None:
    assert usual.apply({key: "hunter2"}) == {key: REDACTED}


def test_keep_all_changes_nothing() -> None:
    told = {"nerdctl/mounts": "[]", "password": "hunter2", "": "x"}
    assert LabelRules.keep_all().apply(told) == told


def test_a_key_named_in_full_is_kept_whatever_exclude_says_but_still_redacted() -> None:
    rules = LabelRules(include=["a/secret"], exclude=["*"], redact=["*SECRET"])
    assert rules.apply({"a/secret": "x", "a/b": "y"}) == {"a/secret": REDACTED}


def test_include_and_exclude_mind_case_and_fit_the_whole_key() -> None:
    rules = LabelRules(include=["app*"], exclude=["app.x"], redact=[])
    assert rules.apply({"app": "1", "App": "2", "app.x": "3", "app.x.y": "4", "my.app": "5"}) == {
        "app": "1",
        "app.x.y": "4",
    }


def test_without_include_nothing_is_kept() -> None:
    assert LabelRules(include=[], exclude=[], redact=[]).apply({"a": "b"}) == {}


def test_a_line_feed_in_a_key_is_a_character_like_others() -> None:
    rules = LabelRules(include=["*"], exclude=["nerdctl/*"], redact=["*secret*"])
    assert rules.apply({"nerdctl/a\nb": "x", "a\nsecret\n": "y"}) == {"a\nsecret\n": REDACTED}


def test_invented_keys_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_VERDICTS_KEPT", 10)
    rules = LabelRules(include=["*"], exclude=["x*"], redact=[])
    told = rules.apply({f"{letter}{number}": "" for number in range(20) for letter in "xy"})
    assert sorted(told) == sorted(f"y{number}" for number in range(20))
    assert len(rules._verdicts) <= 10
