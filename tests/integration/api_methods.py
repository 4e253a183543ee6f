"""Names of all methods of containerd's API: its own services, CRI, and gRPC's health service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MODULES = ("github.com/containerd/containerd/api@v1.12.0", "k8s.io/cri-api@v0.37.0")
"""Go modules with the descriptors of containerd 2.4."""

LIST_FILE = Path(__file__).with_name("api_methods.txt")
_PACKAGE = re.compile(r"^package\s+([\w.]+)\s*;", re.MULTILINE)
_SERVICE_OR_METHOD = re.compile(r"^\s*(service|rpc)\s+(\w+)", re.MULTILINE)


def listed_methods() -> list[str]:
    """Return the committed names in gRPC's form, ``/PACKAGE.SERVICE/METHOD``."""
    return LIST_FILE.read_text().split()


def described_methods(modules: Path) -> Iterator[str]:
    """Yield the names from the descriptors in a Go module cache, of all versions in it."""
    protos = [*modules.glob("github.com/containerd/containerd/api@*/**/*.proto")]
    for proto in [*protos, *modules.glob("k8s.io/cri-api@*/**/*.proto")]:
        text = proto.read_text()
        package, service = _PACKAGE.search(text), ""
        for kind, name in _SERVICE_OR_METHOD.findall(text):
            if kind == "service":
                service = name
            elif package is not None:
                yield f"/{package[1]}.{service}/{name}"
