"""The groups of settings. Each part of the program receives only its own group."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from config.fields import (
    DURATION,
    CommaSeparated,
    Duration,
    GlobList,
    LabelSelectors,
    LowercaseStr,
    NamespaceGlobs,
    NonEmptyGlobList,
    NonEmptyNamespaceGlobs,
    OffAllowed,
    SettingsModel,
    SocketPath,
    between,
    field,
    is_host,
    non_empty,
)

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#@,]+):(\d{1,5})")
_MAX_PORT = 65535
_DEFAULT_MAX_BYTES = 512 * 1024 * 1024
_DEFAULT_MAX_MEMORY_BYTES = 64 * 1024 * 1024


class ContainerdSettings(SettingsModel):
    """The containerd to watch."""

    address: SocketPath = field(
        "/run/containerd/containerd.sock",
        "Path of containerd's socket, or unix:///PATH.",
        reason="The path of most distributions. k3s, rke2, microk8s and k0s use another one.",
    )
    cri: Annotated[Literal["auto", "off"], LowercaseStr] = field(
        "auto",
        "Whether to complete the exits of Kubernetes containers, and labels of pods without a sandbox container, from "
        "containerd's CRI plugin: auto (if it is there) or off.",
        reason="containerd itself forgets how a container ended as soon as its task is deleted; CRI remembers it until "
        "kubelet removes the container.",
    )


class NamespacesSettings(SettingsModel):
    """The containerd namespaces to watch."""

    include: NonEmptyNamespaceGlobs = field(("*",), "Globs of the namespaces to watch.")
    exclude: NamespaceGlobs = field(
        (),
        "Globs of the namespaces not to watch. Docker's namespace moby is always excluded, unless include contains it "
        "literally.",
        reason="Docker's own API provides more about Docker's containers than containerd does.",
    )


class NamesSettings(SettingsModel):
    """Filter of the published containers by name."""

    include: NonEmptyGlobList = field(
        ("*",), "Globs of the containers to publish. A glob matches the nerdctl name or the id."
    )
    exclude: GlobList = field((), "Globs of the containers not to publish, by nerdctl name or id.")


class ProjectsSettings(SettingsModel):
    """Filter of the published containers by compose project."""

    include: NonEmptyGlobList = field(
        ("*",),
        "Globs of the compose projects to publish. The project of a container without one is empty; only a glob of "
        "asterisks matches it.",
    )
    exclude: GlobList = field((), "Globs of the compose projects not to publish.")


class LabelSelectorsSettings(SettingsModel):
    """Filter of the published containers by label. All labels count, including those that are not published."""

    include: LabelSelectors = field(
        (), "Selectors KEY or KEY=VALUE, both globs. If there are any, at least one must match a label."
    )
    exclude: LabelSelectors = field((), "Selectors KEY or KEY=VALUE, both globs. None of them may match a label.")


Kind = Literal["container", "sandbox"]
Kinds = Annotated[
    tuple[Annotated[Kind, LowercaseStr], ...], CommaSeparated, non_empty("list container, sandbox or both")
]
AdditionalEvent = Literal["created", "deleted", "oom", "renamed"]


class ContainersSettings(SettingsModel):
    """The containers to publish: those that match all filters. Decided at each start, and when the filters change."""

    kinds: Kinds = field(
        ("container",),
        "container, sandbox (the pause containers of Kubernetes pods), or both.",
        reason="A sandbox runs no user code. Sandboxes are tracked anyway, for the labels of their pods.",
    )
    names: NamesSettings = NamesSettings()
    projects: ProjectsSettings = ProjectsSettings()
    labels: LabelSelectorsSettings = LabelSelectorsSettings()
    additional_events: Annotated[tuple[Annotated[AdditionalEvent, LowercaseStr], ...], CommaSeparated] = field(
        (),
        "Additional event types to publish: created, deleted, oom, renamed.",
        reason="started, exited, paused and unpaused are enough to know which containers are running.",
    )


class LabelsSettings(SettingsModel):
    """The labels to store and publish, by globs of their keys. Filters and names use all labels."""

    include: GlobList = field(
        ("*", "nerdctl/name"),
        "Globs of the labels to keep. An entry without a wildcard takes precedence over exclude.",
        reason="nerdctl/name holds the container's name.",
    )
    exclude: GlobList = field(
        (
            "nerdctl/*",
            "containerd.io/restart.loguri",
            "io.containerd.image.config.*",
            "org.opencontainers.image.*",
            "org.label-schema.*",
            "maintainer",
        ),
        "Globs of the labels to drop.",
        reason="nerdctl's internal labels hold paths and mounts; labels of images do not describe the container.",
    )
    redact: GlobList = field(
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
        "Globs of the labels whose values are replaced by [redacted]. Case-insensitive.",
        reason="Such keys often hold secrets, and a broker has more readers than the node.",
    )


class SnapshotSettings(SettingsModel):
    """Snapshots of all running containers."""

    interval: Annotated[Duration, between("1s", "30d")] = field(
        timedelta(hours=6),
        "Maximum time between two snapshots, 1s to 30d. It must be shorter than the retention of the broker.",
        unit=DURATION,
        reason="Late consumers get a full baseline several times a day.",
    )


class OutboxSettings(SettingsModel):
    """Limits of the undelivered records per sink. Beyond them the oldest records are dropped and reported as lost."""

    max_bytes: Annotated[int, Field(ge=1_048_576)] | None = field(
        None,
        "Maximum size of the undelivered records of one sink. If it is not set: 536870912 (512 MiB) on disk, in "
        "state_dir, where SQLite needs about 10 % plus 16 MiB more; 67108864 (64 MiB) in memory, without a state_dir.",
        unit="bytes",
        reason="On disk, several hours of a busy node.",
    )
    max_records: Annotated[int, Field(ge=1000)] = field(
        1_000_000,
        "Maximum number of undelivered records of one sink.",
        reason="Records of the usual size reach max_bytes first.",
    )
    max_age: Annotated[Duration, between("1m", "365d")] = field(
        timedelta(days=7),
        "Maximum age of undelivered records, 1m to 365d. Only time during which whalebridge runs counts.",
        unit=DURATION,
        reason="A common retention of brokers.",
    )

    def size_limit(self, state_dir: str | None) -> int:
        """Return ``max_bytes``, or its default for records in ``state_dir``, or in memory if that is None."""
        if self.max_bytes is not None:
            return self.max_bytes
        return _DEFAULT_MAX_BYTES if state_dir else _DEFAULT_MAX_MEMORY_BYTES


class HeartbeatSettings(SettingsModel):
    """Heartbeats: records that show that whalebridge is running, and up to when its records are complete."""

    interval: Annotated[Annotated[Duration, between("1s", "1d")] | None, *OffAllowed] = field(
        timedelta(seconds=60),
        "Time between two heartbeats to each sink that has heartbeats enabled, 1s to 1d; off disables them.",
        unit=DURATION,
        reason="Consumers notice a silent node within minutes.",
    )


def _parse_listen(value: str) -> str:
    """Normalize the address to listen on; disabled is the empty string."""
    value = value.strip()
    if value.lower() in ("", "off"):
        return ""
    match = _ADDRESS.fullmatch(value)
    if not match or int(match[2]) > _MAX_PORT or not is_host(match[1]):
        raise ValueError(
            "invalid address; use HOST:PORT, such as 127.0.0.1:9469, [ADDRESS]:PORT for IPv6, *:PORT for all addresses,"
            " or off"
        )
    return value


class HttpSettings(SettingsModel):
    """The HTTP endpoint: metrics, readiness, running containers, and a status page."""

    listen: Annotated[str, AfterValidator(_parse_listen)] = field(
        "127.0.0.1:9469",
        "HOST:PORT to listen on; *:PORT listens on all addresses of IPv4 and IPv6, off disables the endpoint. If the "
        "default port is in use, whalebridge runs without the endpoint.",
        reason="Names of containers stay on the node unless you decide otherwise.",
    )
    containers: bool = field(
        True,
        "Whether listen serves the status page (/) and /containers, with names, images and labels. control.sock in "
        "state_dir always does.",
    )


class LogSettings(SettingsModel):
    """Log lines, written to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LowercaseStr] = field("info", "Minimum log level.")
    format: Annotated[Literal["auto", "json", "console"], LowercaseStr] = field(
        "auto", "json, console (for people), or auto: console on a terminal, json elsewhere."
    )
