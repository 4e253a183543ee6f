"""Manifests of pods for the tests, with the only image that a node has."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]


def container(name: str, *command: str, memory: str | None = None) -> Manifest:
    """Return a container of the busybox image that runs a shell script or a program."""
    limits = {"resources": {"limits": {"memory": memory}}} if memory else {}
    argv = ["sh", "-c", *command] if len(command) == 1 else list(command)
    return {"name": name, "image": "busybox:latest", "imagePullPolicy": "Never", "command": argv, **limits}


def pod(name: str, *containers: Manifest, restart: str = "Never", **spec: Any) -> Manifest:
    """Return a pod with a label."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": list(containers),
            **spec,
        },
    }
