"""Reloads the settings while the bridge runs: finds the changes, and applies those that need no restart.

A reload is requested by SIGHUP and, with ``reload_on_change``, by a change of the configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping

import structlog
from pydantic import BaseModel

from bridge.core.errors import FatalError
from bridge.core.ports import Clock
from config.settings import Settings, SettingsError
from config.sinks import SinkSettings

RELOADABLE = ("namespaces", "containers", "labels", "sinks", "snapshot", "heartbeat", "log")
"""Settings that a reload can change; of ``log`` only the level, and of ``sinks`` everything but the set of ids."""

POLL_SECONDS = 5.0
"""A change is noticed after one to two of these intervals."""

_log = structlog.get_logger(__name__)


class ConfigFile:
    """The configuration file; create it before the settings are loaded, so that no change after that is missed.

    It is polled: in a volume from a ConfigMap, neither the file nor its directory changes, but a link in its path.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._loaded = self._version()

    async def poll(self, clock: Clock, request_reload: Callable[[], None]) -> None:
        """Request a reload after each change, as soon as the file no longer changes. A file that is gone is ignored."""
        latest = self._loaded
        while True:
            await clock.sleep(POLL_SECONDS)
            previous, latest = latest, self._version()
            if latest == previous and latest not in (None, self._loaded):
                self._loaded = latest
                request_reload()

    def _version(self) -> tuple[int, ...] | None:
        """Return what changes with the content; the content itself could be read only once from a pipe."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class SettingsReloader:
    """Loads the settings again and applies the changes.

    ``error`` says why settings of the last reload are not in effect: errors, or changes that need a restart.

    Args:
        settings: The current settings.
        load: Loads the settings.
        apply: Applies changed settings; if it raises a FatalError, it has changed nothing.
    """

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], apply: Callable[[Settings], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._load = load
        self._apply = apply
        self.error: str | None = None

    async def reload(self) -> None:
        """Reload the settings; if they are invalid, log the errors and change nothing."""
        try:
            loaded = self._load()
        except SettingsError as error:
            for text in error.errors:
                _log.error("settings_reload_failed", error=text)
            self.error = "; ".join(error.errors)
            return
        settings = with_reloadable(self._settings, loaded)
        changed, not_reloadable = list(changed_paths(self._settings, settings)), list(changed_paths(settings, loaded))
        if not_reloadable:
            _log.warning(
                "settings_restart_required", changed=not_reloadable, hint="restart whalebridge to apply these settings"
            )
        try:
            await self._apply(settings)  # also if nothing has changed, because the referenced files may have
        except FatalError as error:
            _log.error("settings_reload_failed", error=str(error))
            self.error = str(error)
            return
        self._settings = settings
        self.error = f"changes of {', '.join(not_reloadable)} need a restart" if not_reloadable else None
        _log.info("settings_reloaded", changed=changed)


def with_reloadable(old: Settings, new: Settings) -> Settings:
    """Return the new settings, with the old values of those that need a restart."""
    unchanged = {name: getattr(old, name) for name in type(old).model_fields if name not in RELOADABLE}
    return new.model_copy(
        update=unchanged
        | {
            "log": new.log.model_copy(update={"format": old.log.format}),
            "sinks": {id_: new.sinks.get(id_, sink) for id_, sink in old.sinks.items()},
        }
    )


def changed_paths(old: BaseModel, new: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the paths of settings that differ, without their values, which may be secret."""
    for name in type(old).model_fields:
        old_value, new_value, full_path = getattr(old, name), getattr(new, name), f"{path}{name}"
        if old_value == new_value:
            continue
        if isinstance(old_value, BaseModel) and type(old_value) is type(new_value):
            yield from changed_paths(old_value, new_value, f"{full_path}.")
        elif full_path == "sinks":
            yield from _changed_sink_paths(old_value, new_value)
        else:
            yield full_path


def _changed_sink_paths(old: Mapping[str, SinkSettings], new: Mapping[str, SinkSettings]) -> Iterator[str]:
    if old.keys() != new.keys():
        yield "sinks"
    for id_ in (id_ for id_ in old if id_ in new):
        if type(old[id_]) is type(new[id_]):
            yield from changed_paths(old[id_], new[id_], f"sinks.{id_}.")
        else:
            yield f"sinks.{id_}.type"
