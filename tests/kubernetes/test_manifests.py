"""The objects of the chart without Helm: the documented kustomization, and the manifests of a release."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from bridge import __version__
from config.sinks.nats import NatsSettings
from tests.documentation import ROOT, code_blocks, shell_commands
from tests.kubernetes.rendering import Manifest, containers, find_one, settings
from tests.testbed.install import search_path
from tests.testbed.process import CommandError, run

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
IMAGE = "registry.example.net/whalebridge"  # of the documented kustomization


def documented_commands() -> list[str]:
    return shell_commands(PAGE, "sh")


@pytest.fixture(autouse=True)
def _helm_and_kubectl(require: Callable[..., None]) -> None:
    require("helm", "kubernetes")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release, with manifests."""
    output = tmp_path_factory.mktemp("release") / "dist"
    make_dist(output, "--image", IMAGE)
    return output


def make_dist(output: Path, *arguments: str) -> None:
    helm = shutil.which("helm", path=search_path("helm"))
    assert helm is not None
    command = [sys.executable, "deploy/dist.py", "--output", str(output), "--helm", helm, *arguments]
    run(command, directory=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)


def shell(command: str, directory: Path) -> str:
    path = search_path("helm", "kubernetes")
    return run(["sh", "-c", command], directory=directory, env=os.environ | {"PATH": path}).stdout


def kustomize(directory: Path) -> list[Manifest]:
    """Return what the documented kustomization makes of `whalebridge.yaml`."""
    for language, name in (("yml", "kustomization.yaml"), ("yaml", "config.yaml")):
        (text,) = code_blocks(PAGE, language)
        (directory / name).write_text(text)
    return list(yaml.safe_load_all(shell(documented_commands()[1], directory)))


def assert_customized(objects: list[Manifest]) -> None:
    for each in objects:
        kubernetes_validate.validate(each, "1.34", strict=True)
        assert each["metadata"]["namespace"] == "containers", each["kind"]
    assert {each["kind"] for each in objects} == {"ConfigMap", "DaemonSet", "NetworkPolicy", "ServiceAccount"}
    images = {container["image"] for container in containers(objects).values()}
    assert images == {f"mirror.example.net/whalebridge:{__version__}"}
    (sink,) = settings(objects).sinks.values()
    assert isinstance(sink, NatsSettings)
    assert sink.servers == ("nats.nats:4222",)
    volumes = find_one(objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    assert {"configMap": {"name": find_one(objects, "ConfigMap")["metadata"]["name"]}, "name": "config"} in volumes
    ports = [port for rule in find_one(objects, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert {"port": 4222, "protocol": "TCP"} in ports
    assert {"port": 53, "protocol": "UDP"} in ports


def test_documented_kustomization_gives_valid_objects(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    shell(documented_commands()[0], tmp_path)
    assert_customized(kustomize(tmp_path))


def test_release_manifests_are_base_for_kustomize(release: Path, tmp_path: Path) -> None:
    name = f"whalebridge-{__version__}.yaml"
    assert name in (release / "SHA256SUMS").read_text()
    objects = list(yaml.safe_load_all((release / name).read_text()))
    for each in objects:
        for version in ("1.29", "1.34"):
            kubernetes_validate.validate(each, version, strict=True)
    assert {container["image"] for container in containers(objects).values()} == {f"{IMAGE}:{__version__}"}
    shutil.copy(release / name, tmp_path / "whalebridge.yaml")
    assert_customized(kustomize(tmp_path))


def test_release_manifests_need_image(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--image"):
        make_dist(tmp_path / "dist")
