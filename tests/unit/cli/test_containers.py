from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bridge.cli import containers
from bridge.cli.containers import connected, list_living
from bridge.cli.failure import CommandError
from bridge.core.errors import TransientError
from bridge.core.events import Container
from bridge.core.filters import NamespaceFilter
from bridge.core.identity import describe
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Metadata, Task, TaskStatus
from config.settings import load
from tests.golden import Golden

ALL = LabelRules.keep_all()
NOT_DOCKER = NamespaceFilter()


class FakeSource:
    """A containerd with the given containers: NAMESPACE/ID, status and labels."""

    def __init__(self, *there: tuple[str, TaskStatus | None, dict[str, str] | None], failing: str = "") -> None:
        self.there = {ContainerKey(*id_.split("/")): (status, labels) for id_, status, labels in there}
        self.failing = failing
        self.listed: list[str] = []

    async def namespaces(self) -> Sequence[str]:
        return list({key.namespace for key in self.there} | ({self.failing} - {""}))

    async def tasks(self, namespace: str) -> Sequence[Task]:
        self.listed.append(namespace)
        if namespace == self.failing:
            raise TransientError("no answer")
        return [
            Task(key, 7, status)
            for key, (status, _) in self.there.items()
            if status is not None and key.namespace == namespace
        ]

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        for key, (_, labels) in self.there.items():
            if key.namespace == namespace and labels is not None:
                yield describe(key, labels, ALL)


RUNNING, PAUSED, STOPPED = TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.STOPPED


# --- list ---


async def test_what_lives_is_listed_and_what_may_live() -> None:
    source = FakeSource(
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
    listing = await list_living(source, NOT_DOCKER, [])
    assert [(each.id, each.status) for each in listing.containers] == [
        ("h", "running"),
        ("shop/a", "running"),
        ("shop/b", "paused"),
        ("shop/c", "paused"),
        ("shop/d", "unknown"),
    ]
    assert listing.failures == []


async def test_a_task_whose_record_is_gone_still_lives() -> None:
    (each,) = (await list_living(FakeSource(("default/a", RUNNING, None)), NOT_DOCKER, [])).containers
    assert (each.id, each.metadata.name, each.metadata.labels) == ("a", "a", None)


async def test_a_namespace_that_fails_is_told_and_the_others_are_listed(golden: Golden) -> None:
    listing = await list_living(FakeSource(("shop/a", RUNNING, {}), failing="default"), NOT_DOCKER, [])
    assert [each.id for each in listing.containers] == ["shop/a"]
    (failure,) = listing.failures
    assert "default" in failure
    golden.entry("containers_found", "a namespace that fails", failure)


async def test_namespaces_asked_for_by_name_must_exist(golden: Golden) -> None:
    source = FakeSource(("shop/a", RUNNING, {}), ("default/b", RUNNING, {}))
    with pytest.raises(CommandError) as caught:
        await list_living(source, NamespaceFilter(["nope", "shop", "no"]), ["nope", "shop", "no"])
    assert caught.value.status == 1
    for line, name in zip(caught.value.lines, ("nope", "no"), strict=True):
        assert f"'{name}'" in line
        assert "default, shop" in line
    golden.entry("containers_found", "no such namespaces", "\n".join(caught.value.lines))
    assert source.listed == []


async def test_a_container_of_a_pod_has_the_labels_of_its_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "boot_id", lambda: "5f3c9a1e-2c1d")
    pod = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": "1b2c"}
    source = FakeSource(
        ("k8s.io/sand", RUNNING, pod | {"io.cri-containerd.kind": "sandbox", "app": "web"}),
        ("k8s.io/app", RUNNING, pod | {"io.cri-containerd.kind": "container", "io.kubernetes.container.name": "app"}),
    )
    listed = {each.id: each for each in (await list_living(source, NOT_DOCKER, [])).containers}
    document = listed["k8s.io/app"].document()
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


async def test_a_containerd_that_is_not_there_is_status_3(tmp_path: Path, golden: Golden) -> None:
    settings = load({"containerd": {"address": str(tmp_path / "c.sock")}})
    with golden.error(
        "containerd_errors", "command, no socket", CommandError, tmp_path / "c.sock", TMP=tmp_path
    ) as caught:
        async with connected(settings):
            pass
    assert caught.value.status == 3


async def test_something_that_is_no_containerd_is_status_3(tmp_path: Path, golden: Golden) -> None:
    path = tmp_path / "s"

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        with golden.error("containerd_errors", "command, HTTP/1", CommandError, path, SOCKET=path) as caught:
            async with connected(load({"containerd": {"address": str(path)}})):
                pass
    assert caught.value.status == 3
