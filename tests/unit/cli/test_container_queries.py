from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from bridge.cli import container_queries
from bridge.cli.container_queries import list_running, open_client
from bridge.cli.errors import CommandError
from bridge.containerd.client import ContainerdClient
from bridge.core.container_metadata import build_metadata
from bridge.core.containerd_model import ContainerKey, Metadata, Task, TaskStatus
from bridge.core.errors import TransientError
from bridge.core.filters import NamespaceFilter
from bridge.core.label_rules import LabelRules
from bridge.core.records import Container
from config.settings import load
from tests.golden import Golden

ALL = LabelRules.keep_all()
NOT_DOCKER = NamespaceFilter()


class FakeClient(ContainerdClient):
    """A containerd with the given containers: NAMESPACE/ID, status and labels."""

    def __init__(self, *containers: tuple[str, TaskStatus | None, dict[str, str] | None], failing: str = "") -> None:
        self.containers_by_key = {ContainerKey(*id_.split("/")): (status, labels) for id_, status, labels in containers}
        self.failing = failing
        self.listed: list[str] = []

    async def namespaces(self) -> Sequence[str]:
        return list({key.namespace for key in self.containers_by_key} | ({self.failing} - {""}))

    async def tasks(self, namespace: str) -> Sequence[Task]:
        self.listed.append(namespace)
        if namespace == self.failing:
            raise TransientError("no response")
        return [
            Task(key, 7, status)
            for key, (status, _) in self.containers_by_key.items()
            if status is not None and key.namespace == namespace
        ]

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        for key, (_, labels) in self.containers_by_key.items():
            if key.namespace == namespace and labels is not None:
                yield build_metadata(key, labels, ALL)


RUNNING, PAUSED, STOPPED = TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.STOPPED


# --- list ---


async def test_list_includes_running_paused_and_unknown_containers() -> None:
    client = FakeClient(
        ("shop/a", RUNNING, {}),
        ("shop/b", PAUSED, {}),
        ("shop/c", TaskStatus.PAUSING, {}),
        ("shop/d", TaskStatus.UNKNOWN, {}),
        ("shop/e", STOPPED, {}),
        ("shop/f", TaskStatus.CREATED, {}),
        ("shop/g", None, {}),
        ("default/h", RUNNING, {}),
        ("moby/i", RUNNING, {}),
    )
    listing = await list_running(client, NOT_DOCKER, [])
    assert [(container.id, container.status) for container in listing.containers] == [
        ("h", "running"),
        ("shop/a", "running"),
        ("shop/b", "paused"),
        ("shop/c", "paused"),
        ("shop/d", "unknown"),
    ]
    assert listing.failures == []


async def test_list_includes_task_when_container_metadata_is_gone() -> None:
    (container,) = (await list_running(FakeClient(("default/a", RUNNING, None)), NOT_DOCKER, [])).containers
    assert (container.id, container.container.name, container.container.labels) == ("a", "a", None)


async def test_list_reports_failed_namespace_and_lists_others(golden: Golden) -> None:
    listing = await list_running(FakeClient(("shop/a", RUNNING, {}), failing="default"), NOT_DOCKER, [])
    assert [container.id for container in listing.containers] == ["shop/a"]
    (failure,) = listing.failures
    assert "default" in failure
    golden.entry("containers_found", "failing namespace", failure)


async def test_list_rejects_missing_namespaces(golden: Golden) -> None:
    client = FakeClient(("shop/a", RUNNING, {}), ("default/b", RUNNING, {}))
    with pytest.raises(CommandError) as caught:
        await list_running(client, NamespaceFilter(["nope", "shop", "no"]), ["nope", "shop", "no"])
    assert caught.value.exit_status == 1
    for line, name in zip(caught.value.lines, ("nope", "no"), strict=True):
        assert f"'{name}'" in line
        assert "default, shop" in line
    golden.entry("containers_found", "missing namespaces", "\n".join(caught.value.lines))
    assert client.listed == []


async def test_list_takes_pod_labels_from_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_queries, "boot_id", lambda: "5f3c9a1e-2c1d")
    pod = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": "1b2c"}
    client = FakeClient(
        ("k8s.io/sand", RUNNING, pod | {"io.cri-containerd.kind": "sandbox", "app": "web"}),
        ("k8s.io/app", RUNNING, pod | {"io.cri-containerd.kind": "container", "io.kubernetes.container.name": "app"}),
    )
    listed = {container.id: container for container in (await list_running(client, NOT_DOCKER, [])).containers}
    document = msgspec.to_builtins(listed["k8s.io/app"].container)
    assert document["pod"] == {
        "name": "web",
        "namespace": "prod",
        "uid": "1b2c",
        "container": "app",
        "labels": {"app": "web"},
    }
    assert (document["id"], document["namespace"], document["pid"]) == ("app", "k8s.io", 7)
    assert (document["incarnation"], document["paused"], document["kind"]) == ("5f3c9a1e-7", False, "container")
    assert set(document) == set(Container.__struct_fields__)


# --- connecting ---


async def test_other_server_on_socket_exits_3(tmp_path: Path, golden: Golden) -> None:
    path = tmp_path / "s"

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(respond, path)
    async with server:
        with golden.error("containerd_errors", "command, HTTP/1", CommandError, path) as caught:
            async with open_client(load({"containerd": {"address": str(path)}})):
                pass
    assert caught.value.exit_status == 3
