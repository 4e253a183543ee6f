"""Lists the running containers of a containerd, for commands that list once, over one connection."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from bridge.app import boot_id
from bridge.cli.errors import CommandError
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.containerd.whalewatcher_api import ContainerdWatcher
from bridge.core.container_metadata import build_metadata, display_id, incarnation_id, with_image_digest
from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Labels, Metadata, Task, TaskStatus
from bridge.core.errors import BridgeError
from bridge.core.label_rules import LabelRules
from bridge.core.record_encoder import build_container
from config.setting_groups import NamespacesSettings
from config.settings import Settings

if TYPE_CHECKING:
    from bridge.consumer.record_decoder import Container as DecodedContainer
    from bridge.core.records import Container

_IMAGE_SECONDS = 1.0  # for the digest of an image


class ContainerInfo(NamedTuple):
    """A container with its display id, and its status: running, paused, or unknown if the shim does not respond."""

    id: str
    status: str
    container: Container | DecodedContainer
    """As in a record."""


class ContainerListing(NamedTuple):
    """The containers, and the errors of namespaces that could not be listed."""

    containers: list[ContainerInfo]
    failures: list[str]


@contextlib.asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[ContainerdClient]:
    """Connect to the containerd of ``settings``.

    Raises:
        CommandError: Connecting failed, or the connection failed later.
    """
    rules = LabelRules(settings.labels.include, settings.labels.exclude, settings.labels.redact)
    client = ContainerdClient(settings.containerd.address, rules)
    try:
        try:
            await client.engine()
        except BridgeError as error:
            raise CommandError.from_connect_error(error) from error
        yield client
    except BridgeError as error:
        raise CommandError.from_error(error) from error
    finally:
        await client.close()


async def list_running(
    client: ContainerdClient, is_watched: Callable[[str], bool], required: Iterable[str]
) -> ContainerListing:
    """List the running containers of the watched namespaces.

    Raises:
        CommandError: A namespace in ``required`` does not exist.
    """
    existing = sorted(await client.namespaces())
    missing = [name for name in required if name not in existing]
    if missing:
        names = ", ".join(existing) or "none"
        raise CommandError(*(f"namespace {name!r} does not exist; existing namespaces: {names}" for name in missing))
    listing = ContainerListing([], [])
    for namespace in filter(is_watched, existing):
        try:
            listing.containers.extend(await _list_namespace(client, namespace))
        except BridgeError as error:
            listing.failures.append(f"namespace {namespace} could not be listed: {error}")
    return listing


async def find(client: ContainerdClient, namespaces: NamespacesSettings, name_or_id: str) -> ContainerInfo:
    """Find one running container; a namespace in ``name_or_id`` is searched even if it is not watched.

    Raises:
        NotFoundError: No container matches.
        AmbiguousError: Several containers match.
    """
    namespace, slash, _ = name_or_id.partition("/")
    include, exclude = ((namespace,), ()) if slash else (namespaces.include, namespaces.exclude)
    container = await ContainerdWatcher(client, include=include, exclude=exclude).find(name_or_id)
    pods: dict[str, Labels | None] = {}
    if container.metadata.pod:
        pods = _pod_labels([each async for each in client.containers(container.metadata.key.namespace)])
    return _container_info(container.task, await _with_image_digest(client, container.metadata), pods)


async def _with_image_digest(client: ContainerdClient, metadata: Metadata) -> Metadata:
    image = None
    if metadata.image:
        with contextlib.suppress(BridgeError):  # unknown, as for the bridge
            image = await client.image(metadata.key.namespace, metadata.image, _IMAGE_SECONDS)
    return with_image_digest(metadata, image, SystemClock().now().wall)


async def _list_namespace(client: ContainerdClient, namespace: str) -> list[ContainerInfo]:
    """List one namespace. Tasks first, so that an old task is not matched with the metadata of a new container."""
    tasks = [task for task in await client.tasks(namespace) if task.running or task.status is TaskStatus.UNKNOWN]
    if not tasks:
        return []
    containers = {each.key: each async for each in client.containers(namespace)}
    pods = _pod_labels(containers.values())
    return [_container_info(task, containers.get(task.key) or _deleted(task.key), pods) for task in tasks]


def _pod_labels(containers: Iterable[Metadata]) -> dict[str, Labels | None]:
    """Return the labels of pods, which their sandboxes have, by the pod's uid."""
    return {each.pod.uid: each.pod_labels for each in containers if each.pod and each.kind == "sandbox"}


def _container_info(task: Task, metadata: Metadata, pod_labels: Mapping[str, Labels | None]) -> ContainerInfo:
    """Build the container by the same code as for a record."""
    transition = Transition(
        type="present",
        origin="snapshot",
        at=0,
        key=task.key,
        metadata=metadata,
        pod_labels=pod_labels.get(metadata.pod.uid) if metadata.pod else None,
        pid=task.pid,
        incarnation=incarnation_id(boot_id(), task.pid),
        paused=task.paused,
    )
    status = "unknown" if task.status is TaskStatus.UNKNOWN else "paused" if task.paused else "running"
    return ContainerInfo(display_id(task.key), status, build_container(transition))


def _deleted(key: ContainerKey) -> Metadata:
    """Return placeholder metadata for a running container whose metadata was deleted."""
    return build_metadata(key, None, LabelRules.keep_all())
