"""All settings of whalebridge. Defaults < environment < command line; what is wrong is listed in full, with its path.

Each part of the program is handed its own section only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from config.environment import from_environment
from config.fields import (
    Duration,
    FolderPath,
    Globs,
    HostName,
    Section,
    SocketPath,
    Word,
    listen_address,
    setting,
    within,
)
from config.sinks import Sinks, StdoutSettings
from config.sinks.common import one_of


class ContainerdSettings(Section):
    """The containerd that is watched."""

    address: SocketPath = setting(
        "/run/containerd/containerd.sock",
        "Path of containerd's socket; unix:///PATH is the same.",
        reason="The usual place. k3s, rke2, microk8s and k0s have theirs elsewhere.",
    )


class NamespacesSettings(Section):
    """Which of containerd's namespaces are watched."""

    include: Globs = setting(
        ("*",), "Globs of the namespaces to watch.", reason="A container nobody hears of is worse than one too many."
    )
    exclude: Globs = setting(
        (),
        "Globs of the namespaces to leave out, besides moby; naming moby literally in include lets it in.",
        reason="Docker's namespace moby is always left out, because Docker has an API of its own that knows more.",
    )


class ContainersSettings(Section):
    """Which containers are published."""

    sandboxes: bool = setting(
        False,
        "Whether the sandbox ('pause') containers of Kubernetes pods are published.",
        reason="Every pod has one that runs nothing of the user's; it is tracked all the same, for the pod's labels.",
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
            "*[._-]pass",
            "*pwd*",
            "*basicauth*",
            "*secret*",
            "*token*",
            "*credential*",
            "*api?key*",
            "*apikey*",
            "*access?key*",
            "*private?key*",
        ),
        "Globs of the labels whose value is replaced by [redacted]; upper and lower case are the same here.",
        reason="Such keys look like secrets, and a broker has more readers than the node.",
    )


class SnapshotSettings(Section):
    """Snapshots of all living containers."""

    interval: Annotated[Duration, within("1s", "30d")] = setting(
        timedelta(hours=6),
        "How long after one snapshot the next is taken at the latest, from 1s to 30d.",
        unit="duration: a whole number and s, m, h or d",
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
        unit="duration: a whole number and s, m, h or d",
        reason="As long as brokers keep records.",
    )
    memory_max_bytes: Annotated[int, Field(ge=1_048_576)] = setting(
        67_108_864,
        "The same as max_bytes, where there is no state_dir and records wait in memory.",
        unit="bytes",
        reason="Memory is dearer than disk.",
    )


class HttpSettings(Section):
    """The HTTP endpoint: readiness, metrics, the status page."""

    listen: Annotated[str, AfterValidator(listen_address)] = setting(
        "127.0.0.1:9469",
        "HOST:PORT to listen on, [ADDRESS]:PORT for IPv6; empty: none. Where the default is taken, it is done without.",
        reason="Who is on the node can look; whom else that concerns, you know better.",
    )
    token: SecretStr | None = setting(
        None,
        "What POST /snapshot has to bring along over TCP, as a bearer token.",
        reason="Without one it is refused there; through the socket in state_dir it needs none.",
    )
    token_file: str | None = setting(
        None, "File with that token; it is read anew for each request.", reason="It keeps it out of the environment."
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


class Settings(BaseSettings):
    """All settings; the environment is read as the object is made."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    host: HostName = setting(
        socket.gethostname,
        "What the node is called in every record.",
        reason="The host's name. In a container that is the container's: set it to the node's.",
    )
    containerd: ContainerdSettings = ContainerdSettings()
    namespaces: NamespacesSettings = NamespacesSettings()
    containers: ContainersSettings = ContainersSettings()
    labels: LabelsSettings = LabelsSettings()
    sinks: Sinks = setting(
        (StdoutSettings(),), "Where records go; each gets all of them.", reason="It is there without a broker."
    )
    snapshot: SnapshotSettings = SnapshotSettings()
    state_dir: FolderPath | None = setting(
        None,
        "Absolute path of a directory of whalebridge's own, on a local disk, for what must outlive the process: "
        "records on their way, and what is known of containers.",
        reason="It works without; then the next start's snapshot makes up for what was on its way.",
    )
    outbox: OutboxSettings = OutboxSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the signature is pydantic-settings')
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Name the sources of values, the strongest first."""
        environment = from_environment(os.environ, settings_cls.model_fields)
        return init_settings, InitSettingsSource(settings_cls, environment)


class SettingsError(Exception):
    """The settings are wrong; ``mistakes`` are all of them, each with its path in front."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


def load(flags: Mapping[str, Any] | None = None) -> Settings:
    """Make the settings, of which ``flags`` (nested by section) come from the command line.

    Raises:
        SettingsError: Something is wrong with them.
    """
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        # Without context and cause: both repeat the values, of which some may be secret.
        mistakes = [_mistake(detail) for detail in error.errors(include_url=False, include_input=False)]
    raise SettingsError(mistakes)


def _mistake(detail: ErrorDetails) -> str:
    path = ".".join(map(str, detail["loc"]))
    match detail["type"]:
        case "extra_forbidden":
            text = "there is no such setting"
        case "model_type" | "dict_type":
            text = "this is a group of settings, it has no value of its own"
        case "value_error":
            text = str(detail["ctx"]["error"])
        case _:
            text = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{path}: {text}"
