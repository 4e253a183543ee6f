"""A reproducible container image built offline from a static busybox."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "docker.io/library/busybox:latest"
LABELS = {"org.opencontainers.image.title": "busybox", "org.opencontainers.image.vendor": "whalebridge testbed"}

_OCI = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def layer(busybox: Path) -> bytes:
    """Return a root file system as a tar archive: busybox, and a symbolic link for each of its applets."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    tree: dict[str, bytes | str | None] = dict.fromkeys(("bin", "dev", "etc", "proc", "root", "sys", "tmp"))
    tree |= {"bin/busybox": busybox.read_bytes(), "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"}
    tree |= {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    return _tar(tree)


def oci_archive(
    busybox: Path,
    name: str = NAME,
    command: Sequence[str] = ("sh",),
    labels: Mapping[str, str] = LABELS,
    environment: Sequence[str] = (),
) -> bytes:
    """Return an image as an OCI archive for `ctr images import`, with its name, command, labels and environment."""
    root = layer(busybox)
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin", *environment], "Cmd": list(command), "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
    }
    blobs: list[bytes] = []

    def descriptor(kind: str, blob: bytes) -> dict[str, object]:
        blobs.append(blob)
        return {"mediaType": f"{_OCI}.{kind}", "digest": _digest(blob), "size": len(blob)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": descriptor("config.v1+json", _json(config)),
        "layers": [descriptor("layer.v1.tar", root)],
    }
    entry = descriptor("manifest.v1+json", _json(manifest)) | {"annotations": {"io.containerd.image.name": name}}
    tree: dict[str, bytes | str | None] = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
    }
    return _tar(tree | {f"blobs/{_digest(blob).replace(':', '/')}": blob for blob in blobs})


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _tar(tree: dict[str, bytes | str | None]) -> bytes:
    """Return a tar archive of files (bytes), symbolic links (str) and directories (None), without owners and times."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in tree.items():
            entry = tarfile.TarInfo(path)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            else:
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()
