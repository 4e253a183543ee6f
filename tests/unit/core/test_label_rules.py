from __future__ import annotations

import pytest

from bridge.core import label_rules
from bridge.core.label_rules import REDACTED, LabelRules
from config.setting_groups import LabelsSettings


@pytest.fixture
def default_rules() -> LabelRules:
    """Return the label rules of the default settings."""
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
def test_default_label_rules_keep_common_labels(default_rules: LabelRules, key: str) -> None:
    assert default_rules.apply({key: "value"}) == {key: "value"}


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
def test_default_label_rules_drop_internal_labels(default_rules: LabelRules, key: str) -> None:
    assert default_rules.apply({key: "value"}) == {}


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
def test_default_label_rules_redact_secrets(default_rules: LabelRules, key: str) -> None:
    assert default_rules.apply({key: "hunter2"}) == {key: REDACTED}


def test_keep_all_rules_change_nothing() -> None:
    all_labels = {"nerdctl/mounts": "[]", "password": "hunter2", "": "x"}
    assert LabelRules.keep_all().apply(all_labels) == all_labels


def test_label_named_in_full_overrides_exclude_but_not_redact() -> None:
    rules = LabelRules(include=["a/secret"], exclude=["*"], redact=["*SECRET"])
    assert rules.apply({"a/secret": "x", "a/b": "y"}) == {"a/secret": REDACTED}


def test_label_patterns_are_case_sensitive_and_match_whole_key() -> None:
    rules = LabelRules(include=["app*"], exclude=["app.x"], redact=[])
    assert rules.apply({"app": "1", "App": "2", "app.x": "3", "app.x.y": "4", "my.app": "5"}) == {
        "app": "1",
        "app.x.y": "4",
    }


def test_label_rules_without_include_drop_all_labels() -> None:
    assert LabelRules(include=[], exclude=[], redact=[]).apply({"a": "b"}) == {}


def test_label_patterns_match_line_feed_in_key() -> None:
    rules = LabelRules(include=["*"], exclude=["nerdctl/*"], redact=["*secret*"])
    assert rules.apply({"nerdctl/a\nb": "x", "a\nsecret\n": "y"}) == {"a\nsecret\n": REDACTED}


def test_label_rules_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_rules, "_MAX_CACHED_DECISIONS", 10)
    rules = LabelRules(include=["*"], exclude=["x*"], redact=[])
    published = rules.apply({f"{letter}{number}": "" for number in range(20) for letter in "xy"})
    assert sorted(published) == sorted(f"y{number}" for number in range(20))
    assert len(rules._decisions) <= 10
