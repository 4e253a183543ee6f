"""Print what starts and ends on all nodes; a restarted program continues where it stopped.

python examples/running_containers.py kafka://localhost:9092/containers state.json
"""

import asyncio
import sys

from bridge.consumer import State, follow


async def main(url: str, path: str, *, wait: bool = True) -> None:
    """Read ``url``, with the state in the file ``path``."""
    state = State.load(path)
    async for change in follow(url, state, wait=wait):
        for container in change.updated.values():
            print(change.source.host, change.record.type, container.name)
        for container in change.removed.values():
            print(change.source.host, "ended", container.name)
        state.save(path)
    print(f"{len(state.containers())} containers are running")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
