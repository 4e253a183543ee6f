"""A consumer that saves its state with its results, as a process that is killed and started again.

`python -m tests.integration.resuming_consumer URL DIRECTORY` appends its changes to `DIRECTORY/changes`, and saves its
state as `DIRECTORY/state-N`, where N is the number of bytes of the changes that belong to it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from io import FileIO
from pathlib import Path
from random import Random

import msgspec

from bridge.consumer import State, follow

PROCESSING_SECONDS = 0.005
_SAVED = 0.2  # part of the changes after which the state is saved


def newest(directory: Path) -> int:
    """Return the number of bytes of the changes that belong to the newest state."""
    return max((int(each.name.partition("-")[2]) for each in directory.glob("state-*[0-9]")), default=0)


async def main(url: str, directory: Path, changes: FileIO) -> None:
    """Read to the end, from where the state ends."""
    written = saved = newest(directory)
    state = State.load(directory / f"state-{saved}")
    changes.truncate(saved)
    changes.seek(saved)
    chance = Random()  # noqa: S311

    def save() -> None:
        nonlocal saved
        state.save(directory / f"state-{written}")
        if written != saved:
            (directory / f"state-{saved}").unlink(missing_ok=True)
            saved = written

    async for change in follow(url, state, wait=False):
        await asyncio.sleep(PROCESSING_SECONDS)
        written += changes.write(msgspec.json.encode((change.source, change.record.position)) + b"\n")
        if chance.random() < _SAVED:
            save()
    save()


if __name__ == "__main__":
    target, path = sys.argv[1], Path(sys.argv[2])
    with os.fdopen(os.open(path / "changes", os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file:
        asyncio.run(main(target, path, file))
