"""List containerd namespace by namespace; retry a namespace that fails, then report it as failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from bridge.core.containerd_model import ContainerKey, Metadata, Task
from bridge.core.errors import BridgeError, NotFoundError
from bridge.core.ports import Clock, EngineClient
from bridge.core.reconcile import Listing
from bridge.task_groups import task_group
from bridge.watch.settings import WatchSettings

NO_MATCH_HINT = "check namespaces.include and namespaces.exclude; moby must be included explicitly"
_MAX_LOGGED_NAMESPACES = 10
_RETRY_PAUSE_SECONDS = 0.5  # multiplied by the number of the attempt
_LISTED_TASKS_PER_QUERY = 5  # a listing costs about as much for each five tasks as one query (docs/performance.md)
_log = structlog.get_logger(__name__)


async def list_containers(
    client: EngineClient, clock: Clock, settings: WatchSettings, *, with_metadata: bool = True
) -> Listing:
    """List the container metadata and tasks of all watched namespaces.

    To list metadata, containerd loads every spec, which is too expensive for polling.
    """
    names = sorted(await client.namespaces())
    listing = Listing(excluded=[name for name in names if not settings.namespace_filter(name)])
    if names and len(listing.excluded) == len(names):
        _log.warning("no_namespace_matches", existing=names[:_MAX_LOGGED_NAMESPACES], hint=NO_MATCH_HINT)
    for namespace in filter(settings.namespace_filter, names):
        listed = await _list_namespace(
            client, clock, settings.namespace_attempts, namespace, with_metadata=with_metadata
        )
        listing.namespaces.append(namespace)
        if listed is None:
            listing.failed.append(namespace)
            continue
        containers, tasks = listed
        listing.containers.update(containers)
        listing.tasks.update((task.key, task) for task in tasks)
    return listing


async def _list_namespace(
    client: EngineClient, clock: Clock, attempts: int, namespace: str, *, with_metadata: bool
) -> tuple[dict[ContainerKey, Metadata], Sequence[Task]] | None:
    """List one namespace; None if all attempts fail. A namespace deleted in the meantime is empty."""
    for attempt in range(1, attempts + 1):
        try:
            containers = {each.key: each async for each in client.containers(namespace)} if with_metadata else {}
            return containers, await client.tasks(namespace)
        except NotFoundError:
            return {}, []
        except BridgeError as error:
            _log.warning(
                "namespace_list_failed", namespace=namespace, attempt=attempt, max_attempts=attempts, error=str(error)
            )
            if attempt < attempts:
                await clock.sleep(_RETRY_PAUSE_SECONDS * attempt)
    return None


async def find_tasks(
    client: EngineClient,
    keys: Sequence[ContainerKey],
    task_counts: Mapping[str, int],
    semaphore: asyncio.Semaphore,
) -> list[Task | BridgeError | None]:
    """Look for tasks of containers that probably have none, by queries or a listing, whichever costs less.

    ``task_counts`` are the known tasks by namespace. None says only that no task was found: a listing may omit tasks.
    """
    by_namespace: dict[str, list[ContainerKey]] = {}
    for key in keys:
        by_namespace.setdefault(key.namespace, []).append(key)
    found: dict[ContainerKey, Task | BridgeError | None] = {}
    for namespace, group in by_namespace.items():
        if len(group) * _LISTED_TASKS_PER_QUERY <= task_counts.get(namespace, 0):
            found |= zip(group, await query_tasks(client, group, semaphore), strict=True)
            continue
        try:
            found |= {task.key: task for task in await client.tasks(namespace)}
        except BridgeError as error:
            found |= dict.fromkeys(group, error)
    return [found.get(key) for key in keys]


async def query_tasks(
    client: EngineClient, keys: Sequence[ContainerKey], semaphore: asyncio.Semaphore
) -> list[Task | BridgeError | None]:
    """Query tasks, concurrently as far as the semaphore allows; the result of a failed query is its error."""

    async def query(key: ContainerKey) -> Task | BridgeError | None:
        async with semaphore:
            try:
                return await client.task(key)
            except BridgeError as error:
                return error

    async with task_group() as tasks:
        queries = [tasks.create_task(query(key)) for key in keys]
    return [each.result() for each in queries]
