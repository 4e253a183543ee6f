"""Taking up changed settings while the bridge runs: what has changed, and what of it can be changed now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import structlog
from pydantic import BaseModel

from bridge.core.errors import FatalError
from config.settings import Settings, SettingsError
from config.sinks import SinkSettings

RELOADABLE = ("namespaces", "containers", "labels", "sinks", "snapshot", "heartbeat", "log")
"""What can be changed while it runs; of ``log`` the level, and of ``sinks`` all but which there are."""

_log = structlog.get_logger(__name__)


class SettingsReloader:
    """Reads the settings anew, and has what has changed applied.

    Args:
        settings: Those in force.
        load: Reads them anew.
        apply: Goes on under others.
    """

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], apply: Callable[[Settings], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._load = load
        self._apply = apply

    async def reload(self) -> None:
        """Do it once; mistakes in the settings change nothing."""
        try:
            loaded = self._load()
        except SettingsError as error:
            for text in error.errors:
                _log.error("settings_reload_failed", error=text)
            return
        settings = with_reloadable(self._settings, loaded)
        changed, left = list(changed_paths(self._settings, settings)), list(changed_paths(settings, loaded))
        if left:
            _log.warning("settings_restart_required", changed=left, hint="restart whalebridge to apply these settings")
        try:
            await self._apply(settings)  # also where they are the same: the files that they name may be others now
        except FatalError as error:
            _log.error("settings_reload_failed", error=str(error))
            return
        self._settings = settings
        _log.info("settings_reloaded", changed=changed)


def with_reloadable(old: Settings, new: Settings) -> Settings:
    """Return the new settings, but for what only a restart can change."""
    kept = {name: getattr(old, name) for name in type(old).model_fields if name not in RELOADABLE}
    return new.model_copy(
        update=kept
        | {
            "log": new.log.model_copy(update={"format": old.log.format}),
            "sinks": {id_: new.sinks.get(id_, sink) for id_, sink in old.sinks.items()},
        }
    )


def changed_paths(old: BaseModel, new: BaseModel, path: str = "") -> Iterator[str]:
    """Return the names of settings that differ, and none of their values."""
    for name in type(old).model_fields:
        before, after, here = getattr(old, name), getattr(new, name), f"{path}{name}"
        if before == after:
            continue
        if isinstance(before, BaseModel) and type(before) is type(after):
            yield from changed_paths(before, after, f"{here}.")
        elif here == "sinks":
            yield from _changed_sink_paths(before, after)
        else:
            yield here


def _changed_sink_paths(old: Mapping[str, SinkSettings], new: Mapping[str, SinkSettings]) -> Iterator[str]:
    if old.keys() != new.keys():
        yield "sinks"
    for id_ in [each for each in old if each in new]:
        if type(old[id_]) is type(new[id_]):
            yield from changed_paths(old[id_], new[id_], f"sinks.{id_}.")
        else:
            yield f"sinks.{id_}.type"
