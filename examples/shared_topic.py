"""Print what starts and ends on the nodes that this process gets; start it several times to share a Kafka topic.

python examples/shared_topic.py kafka://localhost:9092/containers billing
"""

import asyncio
import sys

from bridge.consumer import State, follow


async def main(url: str, group: str) -> None:
    """Read a share of ``url``."""
    state = State()
    async for change in follow(url, state, group=group):
        for container in change.updated.values():
            print(change.source.host, change.record.type, container.name, change.record.position)
        for container in change.removed.values():
            print(change.source.host, "ended", container.name, change.record.position)
        print(f"{len(state.containers())} containers are running on {len(state.sources())} nodes", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
