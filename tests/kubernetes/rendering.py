"""Render the chart with Helm."""

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
    """Run Helm without a cluster, and return its output; a failure raises CommandError with its output."""
    no_home = {f"HELM_{name}_HOME": "/nonexistent" for name in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": search_path("helm"), "KUBECONFIG": "/nonexistent", **no_home}
    return run(["helm", *args], env=os.environ | env).stdout


def render(
    values: Mapping[str, Any] | None = None, *, flags: Sequence[str] = (), kubernetes: str = "1.34"
) -> list[Manifest]:
    """Return all objects, rendered with the given values (by path) and flags."""
    value_flags = [f"--set-json={path}={json.dumps(value)}" for path, value in (values or {}).items()]
    text = helm("template", "whalebridge", str(CHART), f"--kube-version={kubernetes}", *value_flags, *flags)
    return [document for document in yaml.safe_load_all(text) if document]


def find_one(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only object of a kind."""
    (match,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return match


def pod(manifests: list[Manifest]) -> Manifest:
    """Return the spec of the DaemonSet's pods."""
    spec: Manifest = find_one(manifests, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def containers(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the containers of the DaemonSet's pods by name, including init containers."""
    spec = pod(manifests)
    return {each["name"]: each for each in (*spec.get("initContainers", ()), *spec["containers"])}


def settings(manifests: list[Manifest]) -> dict[str, Any]:
    """Return whalebridge's settings in the ConfigMap."""
    matches = [each for each in manifests if each["kind"] == "ConfigMap" and "config.yaml" in each.get("data", ())]
    document: dict[str, Any] = yaml.safe_load(matches[0]["data"]["config.yaml"])
    return document
