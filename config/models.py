"""The groups of settings. Each part of the program is handed its own only."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from config.fields import (
    DURATION,
    Conditions,
    Duration,
    FilePath,
    Globs,
    Items,
    OrOff,
    Section,
    SocketPath,
    SomeGlobs,
    Word,
    one_of,
    setting,
    within,
)

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#@,]+):(\d{1,5})")
_LAST_PORT = 65535


class ContainerdSettings(Section):
    """The containerd that is watched."""

    address: SocketPath = setting(
        "/run/containerd/containerd.sock",
        "Path of containerd's socket; unix:///PATH is the same.",
        reason="The usual place. k3s, rke2, microk8s and k0s have theirs elsewhere.",
    )


class NamespacesSettings(Section):
    """Which of containerd's namespaces are watched."""

    include: SomeGlobs = setting(
        ("*",), "Globs of the namespaces to watch.", reason="A container nobody hears of is worse than one too many."
    )
    exclude: Globs = setting(
        (),
        "Globs of the namespaces to leave out, besides moby; naming moby literally in include lets it in.",
        reason="Docker's namespace moby is always left out, because Docker has an API of its own that knows more.",
    )


class NamesSettings(Section):
    """Which containers are published, by name."""

    include: SomeGlobs = setting(
        ("*",),
        "Globs of the containers to publish. One fits a container by its nerdctl name, or by its id.",
        reason="Whoever reads can leave out what it does not want.",
    )
    exclude: Globs = setting(
        (), "Globs of the containers to leave out, by nerdctl name or id.", reason="Nobody but you knows of any."
    )


class ProjectsSettings(Section):
    """Which containers are published, by compose project."""

    include: SomeGlobs = setting(
        ("*",),
        "Globs of the compose projects whose containers are published; the project of a container without one is "
        "empty, which only a glob of asterisks fits.",
        reason="Whoever reads can leave out what it does not want.",
    )
    exclude: Globs = setting(
        (), "Globs of the compose projects whose containers are left out.", reason="Nobody but you knows of any."
    )


class LabelConditionsSettings(Section):
    """Which containers are published, by label: by all labels they have, whatever of them is published."""

    include: Conditions = setting(
        (),
        "KEY or KEY=VALUE, both of them globs, of which one has to fit a label; where there is none, any labels do.",
        reason="Most containers have no labels.",
    )
    exclude: Conditions = setting(
        (),
        "KEY or KEY=VALUE, both of them globs, of which none may fit a label.",
        reason="Nobody but you knows of any.",
    )


Kind = Literal["container", "sandbox"]
Extra = Literal["created", "deleted", "oom", "renamed"]


def _some(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if not kinds:
        raise ValueError("name one kind at least: container, sandbox")
    return kinds


class ContainersSettings(Section):
    """Which containers are published: those that all of this lets through. It is decided once for each life."""

    kinds: Annotated[tuple[Annotated[Kind, Word], ...], Items, AfterValidator(_some)] = setting(
        ("container",),
        "container, sandbox (the 'pause' containers of Kubernetes pods), or both.",
        reason="Every pod has a sandbox that runs nothing of the user's; it is tracked all the same, for the labels.",
    )
    names: NamesSettings = NamesSettings()
    projects: ProjectsSettings = ProjectsSettings()
    labels: LabelConditionsSettings = LabelConditionsSettings()
    extras: Annotated[tuple[Annotated[Extra, Word], ...], Items] = setting(
        (),
        "Records to publish besides: created, deleted, oom, renamed.",
        reason="The four transitions say which containers live; these are for those who want to know more.",
    )


class LabelsSettings(Section):
    """Which labels are stored and published, by globs on the label's key; who a container is, is told of all labels."""

    include: Globs = setting(
        ("*", "nerdctl/name"),
        "Globs of the labels to keep; one without a wildcard is kept whatever exclude says.",
        reason="Labels are why people have labels. nerdctl/name is the container's name.",
    )
    exclude: Globs = setting(
        (
            "nerdctl/*",
            "containerd.io/restart.loguri",
            "io.containerd.image.config.*",
            "org.opencontainers.image.*",
            "org.label-schema.*",
            "maintainer",
        ),
        "Globs of the labels to leave out.",
        reason="nerdctl's own are its bookkeeping, with paths and mounts; an image's say nothing of the container.",
    )
    redact: Globs = setting(
        (
            "*passw*",
            "*passphrase*",
            "pass",
            "*[._-]pass",
            "*pwd*",
            "*basicauth*",
            "*secret*",
            "*token*",
            "*credential*",
            "*api?key*",
            "*apikey*",
            "*access?key*",
            "*accesskey*",
            "*private?key*",
            "*privatekey*",
        ),
        "Globs of the labels whose value is replaced by [redacted]; upper and lower case are the same here.",
        reason="Such keys look like secrets, and a broker has more readers than the node.",
    )


class SnapshotSettings(Section):
    """Snapshots of all living containers."""

    interval: Annotated[Duration, within("1s", "30d")] = setting(
        timedelta(hours=6),
        "How long after one snapshot the next is taken at the latest, from 1s to 30d.",
        unit=DURATION,
        reason="Who joins in the middle gets a base several times a day. It must be shorter than what readers keep.",
    )


class OutboxSettings(Section):
    """How much waits for a sink that does not take it; beyond that its oldest records are dropped, and it is told."""

    max_bytes: Annotated[int, Field(ge=1_048_576)] = setting(
        536_870_912,
        "How many bytes of records wait for one sink at the most, on disk in state_dir.",
        unit="bytes",
        reason="Some hours of a busy node. What SQLite needs besides comes on top: a tenth, and 16 MiB.",
    )
    max_records: Annotated[int, Field(ge=1000)] = setting(
        1_000_000,
        "How many records wait for one sink at the most.",
        reason="At a usual size it is met after max_bytes.",
    )
    max_age: Annotated[Duration, within("1m", "365d")] = setting(
        timedelta(days=7),
        "How old a record grows that waits for a sink. Only time for which whalebridge runs counts.",
        unit=DURATION,
        reason="As long as brokers keep records.",
    )
    memory_max_bytes: Annotated[int, Field(ge=1_048_576)] = setting(
        67_108_864,
        "The same as max_bytes, where there is no state_dir and records wait in memory.",
        unit="bytes",
        reason="Memory is dearer than disk.",
    )


class HeartbeatSettings(Section):
    """Heartbeats: records that say that whalebridge is there, and when it last knew that it misses nothing."""

    interval: Annotated[Annotated[Duration, within("1s", "1d")] | None, *OrOff] = setting(
        timedelta(seconds=60),
        "How often one is sent to each sink that takes them (its setting heartbeats), from 1s to 1d; off: never.",
        unit=DURATION,
        reason="A node that fell silent is noticed within minutes, at next to no cost.",
    )


def _listen(value: str) -> str:
    """Settle where to listen; nowhere is the empty text."""
    value = value.strip()
    if value.lower() in ("", "off"):
        return ""
    found = _ADDRESS.fullmatch(value)
    if not found or int(found[1]) > _LAST_PORT:
        raise ValueError("write HOST:PORT, such as 127.0.0.1:9469, or [ADDRESS]:PORT for IPv6; off: do not listen")
    return value


class HttpSettings(Section):
    """The HTTP endpoint: metrics, readiness, what lives, and a page for people."""

    listen: Annotated[str, AfterValidator(_listen)] = setting(
        "127.0.0.1:9469",
        "HOST:PORT to listen at; off, or nothing: none. Where the default port is taken, whalebridge goes on without.",
        reason="Names of containers are nobody's business but the node's, until you say otherwise.",
    )
    token: Annotated[SecretStr, Field(min_length=1)] | None = setting(
        None,
        "What a request that asks for something (POST /snapshot) has to show as its bearer token.",
        reason="Without one, snapshots are asked for on the socket in state_dir only.",
    )
    token_file: FilePath | None = setting(
        None, "File with the token; a line feed at its end is not part of it.", reason="Keeps it out of settings."
    )

    @model_validator(mode="after")
    def _consistent(self) -> HttpSettings:
        one_of(self, "token", "token_file")
        return self


class LogSettings(Section):
    """Log lines, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Word] = setting(
        "info", "The least important lines that are written.", reason="One line for each change of state."
    )
    format: Annotated[Literal["auto", "json", "console"], Word] = setting(
        "auto",
        "json, console (for people), or auto: console on a terminal, json elsewhere.",
        reason="People read terminals, programs read the rest.",
    )
