"""A reader of a consumer group, as a process: `python -m tests.integration.group_member URL GROUP DIRECTORY`.

It writes its changes to `DIRECTORY/changes`, one record per line, and its state to `DIRECTORY/state.json` all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from io import FileIO
from pathlib import Path
from typing import TypeAlias

import msgspec

from bridge.consumer import State, follow

WRITE_SECONDS = 0.2

Held: TypeAlias = dict[str, tuple[tuple[int, int], bool, list[str]]]
"""By host: position, whether the containers are complete, and their ids."""


def held(state: State) -> Held:
    """Return what a state has of each source."""
    containers: dict[str, list[str]] = {}
    for each in state.containers():
        containers.setdefault(each.source.host, []).append(each.id)
    return {
        each.source.host: (each.position, each.complete, sorted(containers.get(each.source.host, [])))
        for each in state.sources()
    }


async def _write(state: State, path: Path) -> None:
    while True:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(held(state)))
        os.replace(temporary, path)
        await asyncio.sleep(WRITE_SECONDS)


async def main(url: str, group: str, directory: str, *, file: FileIO) -> None:
    """Read until the process is killed."""
    state = State()
    async with asyncio.TaskGroup() as tasks, contextlib.aclosing(follow(url, state, group=group)) as changes:
        tasks.create_task(_write(state, Path(directory, "state.json")))
        async for change in changes:
            file.write(msgspec.json.encode(change.record) + b"\n")


if __name__ == "__main__":
    with Path(sys.argv[3], "changes").open("ab", buffering=0) as file:
        asyncio.run(main(*sys.argv[1:4], file=file))
