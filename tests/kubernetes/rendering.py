"""Render the chart with Helm."""

from __future__ import annotations

import json
import os
import re
import tempfile
import unittest.mock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from config.settings import Settings, load
from tests.testbed.install import search_path
from tests.testbed.process import run

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "whalebridge"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
DISTRIBUTIONS = {
    **dict.fromkeys(
        ("containerd", "aks", "bottlerocket", "eks", "gke-cos", "talos"), "/run/containerd/containerd.sock"
    ),
    **dict.fromkeys(("k3s", "rke2"), "/run/k3s/containerd/containerd.sock"),
    "k0s": "/run/k0s/containerd.sock",
    "microk8s": "/var/snap/microk8s/common/run/containerd.sock",
}

FOREIGN = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "CiliumNetworkPolicy"}
"""Kinds that Kubernetes' schemas do not have; the API server validates them in test_cluster.py."""

Manifest = dict[str, Any]


class KubernetesLoader(yaml.SafeLoader):
    """Loads YAML as kubectl, kustomize and Flux do: `1e3` is a number, and a key that occurs twice is an error."""


def _construct_mapping(loader: KubernetesLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise yaml.YAMLError(f"repeated keys: {repeated}")
    return loader.construct_mapping(node, deep=True)


KubernetesLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
KubernetesLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def helm(*args: str) -> str:
    """Run Helm without a cluster, and return its output; a failure raises CommandError with its output."""
    no_home = {f"HELM_{name}_HOME": "/nonexistent" for name in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": search_path("helm"), "KUBECONFIG": "/nonexistent", **no_home}
    return run(["helm", *args], env=os.environ | env).stdout


def render(
    values: Mapping[str, Any] | None = None,
    *,
    flags: Sequence[str] = (),
    kubernetes: str = "1.34",
    release: str = "whalebridge",
) -> list[Manifest]:
    """Return all objects, rendered with the given values (by path) and flags."""
    given = {"image.registry": "registry.example.net", **(values or {})}
    value_flags = [f"--set-json={path}={json.dumps(value)}" for path, value in given.items()]
    text = helm("template", release, str(CHART), f"--kube-version={kubernetes}", *value_flags, *flags)
    return [document for document in yaml.load_all(text, KubernetesLoader) if document]


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


def settings(manifests: list[Manifest]) -> Settings:
    """Return the settings that the bridge loads: those in the ConfigMap, and over them those in the environment."""
    matches = [each for each in manifests if each["kind"] == "ConfigMap" and "config.yaml" in each.get("data", ())]
    variables = {each["name"]: each.get("value", "node") for each in containers(manifests)["bridge"]["env"]}
    with tempfile.TemporaryDirectory() as directory, unittest.mock.patch.dict(os.environ, variables):
        path = Path(directory) / "config.yaml"
        path.write_text(matches[0]["data"]["config.yaml"] if matches else "")
        return load(path=str(path))
