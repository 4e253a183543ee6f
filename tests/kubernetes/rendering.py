"""The chart as Helm renders it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.testbed.install import search_path
from tests.testbed.process import run

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "whalebridge"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
DISTRIBUTIONS = {
    "containerd": "/run/containerd/containerd.sock",
    "k3s": "/run/k3s/containerd/containerd.sock",
    "rke2": "/run/k3s/containerd/containerd.sock",
    "microk8s": "/var/snap/microk8s/common/run/containerd.sock",
    "k0s": "/run/k0s/containerd.sock",
    "bottlerocket": "/run/containerd/containerd.sock",
}

Manifest = dict[str, Any]


def helm(*args: str) -> str:
    """Call Helm, of which no cluster is known; a failure raises CommandError with what it said."""
    nowhere = {f"HELM_{name}_HOME": "/nonexistent" for name in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": search_path("helm"), "KUBECONFIG": "/nonexistent", **nowhere}
    return run(["helm", *args], env=os.environ | env).stdout


def render(
    values: Mapping[str, Any] | None = None, *, flags: Sequence[str] = (), kubernetes: str = "1.34"
) -> list[Manifest]:
    """All objects, for some values (by path) and more flags."""
    given = [f"--set-json={path}={json.dumps(value)}" for path, value in (values or {}).items()]
    text = helm("template", "whalebridge", str(CHART), f"--kube-version={kubernetes}", *given, *flags)
    return [document for document in yaml.safe_load_all(text) if document]


def find_one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only object of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    """The DaemonSet's pods."""
    spec: Manifest = find_one(manifests, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def containers(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The containers of the DaemonSet's pods by name, those that come first among them."""
    spec = pod(manifests)
    return {each["name"]: each for each in (*spec.get("initContainers", ()), *spec["containers"])}


def settings(manifests: list[Manifest]) -> dict[str, Any]:
    """whalebridge's settings in the ConfigMap."""
    found = [each for each in manifests if each["kind"] == "ConfigMap" and "config.yaml" in each.get("data", ())]
    document: dict[str, Any] = yaml.safe_load(found[0]["data"]["config.yaml"])
    return document
