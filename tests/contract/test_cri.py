"""Contract of CRI's reads with real containerds, which have no networking here: the pods are in the host's network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from bridge.containerd import methods
from bridge.containerd.client import ContainerdClient
from bridge.core.container_metadata import (
    KUBERNETES_NAMESPACE,
    POD_NAME_LABEL,
    POD_NAMESPACE_LABEL,
    POD_UID_LABEL,
    with_image_digest,
)
from bridge.core.containerd_model import ContainerKey
from bridge.core.label_rules import LabelRules
from tests.integration.canaries import Canaries
from tests.proxy_process import ProxyProcess
from tests.simulator.wire import field
from tests.testbed import image
from tests.testbed.containerd import VERSIONS, Containerd, busybox_path, components

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
_NODE_NETWORK = b"\x08\x02"
_CONFIG_HEAD = """\
version = {version}
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"""
# Without CAP_SYS_RESOURCE, sandboxes start only with restrict_oom_score_adj.
_CRI_CONFIG = {
    "1.6": """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{directory}/cni/bin"
  conf_dir = "{directory}/cni"
""",
    "2.4": """\
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{directory}/cni/bin"]
  conf_dir = "{directory}/cni"
""",
}


class CRIContainerd(Containerd):
    """A containerd with CRI, and those of CRI's writing calls that kubelet makes for a container."""

    def import_images(self) -> None:
        self.import_image(KUBERNETES_NAMESPACE)
        archive = self.directory / "pause.tar"
        archive.write_bytes(image.oci_archive(busybox_path(), PAUSE_IMAGE, ["sleep", "2000000000"]))
        self.ctr("images", "import", str(archive), namespace=KUBERNETES_NAMESPACE)

    def run_pod(self, name: str, annotations: Mapping[str, str]) -> tuple[str, bytes]:
        """Start the sandbox of a pod, with labels as kubelet sets them; return its id and its configuration."""
        labels = {"app": name, POD_NAME_LABEL: name, POD_NAMESPACE_LABEL: "shop", POD_UID_LABEL: f"uid-{name}"}
        metadata = field(1, name) + field(2, f"uid-{name}") + field(3, "shop")
        linux = field(8, field(2, field(1, _NODE_NETWORK)))
        config = field(1, metadata) + _map(6, labels) + _map(7, annotations) + linux
        return self._call("RunPodSandbox", field(1, config)), config

    def run_container(
        self, pod: tuple[str, bytes], name: str, script: str, annotations: Mapping[str, str], variable: str
    ) -> str:
        """Run a container of a pod; return its id."""
        sandbox, sandbox_config = pod
        command = b"".join(field(3, word) for word in ("sh", "-c", script))
        environment = field(6, field(1, "TOKEN") + field(2, variable))
        labels = {POD_UID_LABEL: "uid", "io.kubernetes.container.name": name}
        config = field(1, field(1, name)) + field(2, field(1, image.NAME)) + command + environment
        config += _map(9, labels) + _map(10, annotations)
        request = field(1, sandbox) + field(2, config) + field(3, sandbox_config)
        id_ = self._call("CreateContainer", request)
        self._call("StartContainer", field(1, id_))
        return id_

    def remove_pod(self, sandbox: str) -> None:
        self._call("StopPodSandbox", field(1, sandbox))
        self._call("RemovePodSandbox", field(1, sandbox))

    def _call(self, method: str, request: bytes) -> str:
        """Call a method; return the id in its response, if there is one."""
        response = call(self.address, f"/runtime.v1.RuntimeService/{method}", request)
        return response[2:].decode()

    def _write_config(self) -> str:
        config = _CONFIG_HEAD + _CRI_CONFIG[self.version]
        version = 2 if self.version == "1.6" else 3
        return config.format(directory=self.directory, version=version, pause=PAUSE_IMAGE)


def _map(number: int, values: Mapping[str, str]) -> bytes:
    return b"".join(field(number, field(1, key) + field(2, value)) for key, value in values.items())


def call(address: str, path: str, request: bytes) -> bytes:
    with grpc.insecure_channel(methods.target(address)) as channel:
        multi_callable: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        return multi_callable(request, timeout=60)


@pytest.fixture(params=VERSIONS, scope="module")
def containerd(request: pytest.FixtureRequest) -> Iterator[CRIContainerd]:
    request.getfixturevalue("require_as_root")(*components(request.param))
    with CRIContainerd(request.param) as containerd:
        containerd.import_images()
        yield containerd


async def test_cri_reads_return_what_the_bridge_needs(containerd: CRIContainerd, tmp_path: Path) -> None:
    """Directly, and through the proxy, which removes annotations and the environment."""
    canaries = Canaries()
    annotations, variable = {"example.com/note": canaries.new("annotation")}, canaries.new("environment")
    before = time.time_ns()
    pod = await asyncio.to_thread(containerd.run_pod, "web", annotations)
    scripts = {"fails": "exit 3", "runs": "sleep 1000", "succeeds": "exit 0"}
    ids = [
        await asyncio.to_thread(containerd.run_container, pod, name, script, annotations, variable)
        for name, script in scripts.items()
    ]
    failed, running, succeeded = (ContainerKey(KUBERNETES_NAMESPACE, id_) for id_ in ids)
    with ProxyProcess(containerd.address, tmp_path) as proxy:
        for address in (containerd.address, proxy.address):
            async with ContainerdClient(address, LabelRules.keep_all()) as client:
                await wait_exited(client, 2)
                assert await client.exited_containers(10) == [failed, succeeded]
                for key, status in ((failed, 3), (succeeded, 0)):
                    recorded = await client.recorded_exit(key, 10)
                    assert recorded is not None
                    started_at, exited_at = recorded.started_at, recorded.exited_at
                    assert started_at is not None
                    assert exited_at is not None
                    assert (recorded.exit_status, recorded.oom) == (status, False)
                    # CRI notes the start when its call has returned, which may be after the end of a short run.
                    assert before < started_at < time.time_ns()
                    assert before < exited_at < time.time_ns()
                assert await client.recorded_exit(running, 10) is None
                assert await client.recorded_exit(ContainerKey(KUBERNETES_NAMESPACE, "unknown"), 10) is None
                for uids in ((), ("uid-web",), ("uid-web", "uid")):
                    assert await client.pod_labels(uids, 10) == {"uid-web": {"app": "web"}}
                assert await client.pod_labels(["uid"], 10) == {}
                created = await client.container(running)
                assert created is not None
                image_ = await client.image(KUBERNETES_NAMESPACE, created.image, 10)
                digest = await asyncio.to_thread(containerd.image_digest, created.image, KUBERNETES_NAMESPACE)
                assert with_image_digest(created, image_, time.time_ns()).image_digest == digest
                metadata = await client.container(ContainerKey(KUBERNETES_NAMESPACE, pod[0]))
                assert metadata is not None
                assert metadata.pod_labels == {"app": "web", **image.LABELS}
        requests = {
            methods.CRI_CONTAINERS.path: methods.CRI_CONTAINERS_REQUEST.SerializeToString(),
            methods.CRI_STATUS.path: field(1, failed.id),
            methods.CRI_PODS.path: b"",
        }
        direct = {path: call(containerd.address, path, request) for path, request in requests.items()}
        assert len(canaries.find_leaks(direct)) == len(direct), "the test looks for nothing"
        passed = {path: call(proxy.address, path, request) for path, request in requests.items()}
        assert canaries.find_leaks(passed) == []
    await asyncio.to_thread(containerd.remove_pod, pod[0])
    async with ContainerdClient(containerd.address, LabelRules.keep_all()) as client:
        assert (await client.exited_containers(10), await client.pod_labels((), 10)) == ([], {})


async def wait_exited(client: ContainerdClient, count: int) -> None:
    async with asyncio.timeout(60):
        while len(await client.exited_containers(10) or ()) < count:  # noqa: ASYNC110 (in another process)
            await asyncio.sleep(0.1)
