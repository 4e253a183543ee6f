"""Reloads the settings while the bridge runs: finds the changes, and applies those that need no restart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import structlog
from pydantic import BaseModel

from bridge.core.errors import FatalError
from config.settings import Settings, SettingsError
from config.sinks import SinkSettings

RELOADABLE = ("namespaces", "containers", "labels", "sinks", "snapshot", "heartbeat", "log")
"""Settings that a reload can change; of ``log`` only the level, and of ``sinks`` everything but the set of ids."""

_log = structlog.get_logger(__name__)


class SettingsReloader:
    """Loads the settings again and applies the changes.

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

    async def reload(self) -> None:
        """Reload the settings; if they are invalid, log the errors and change nothing."""
        try:
            loaded = self._load()
        except SettingsError as error:
            for text in error.errors:
                _log.error("settings_reload_failed", error=text)
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
            return
        self._settings = settings
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
