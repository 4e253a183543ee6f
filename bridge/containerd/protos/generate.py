"""Generate the ``_pb2`` modules from the .proto files: ``python -m bridge.containerd.protos.generate [--check]``.

Needs the development extra (grpcio-tools). ``--check`` changes nothing, and fails if the committed modules differ from
the generated ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DIRECTORIES = (HERE.relative_to(ROOT), Path("sinks/protos"))
SHARED_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_protos.POOL"
IMPORTS_END = "# @@protoc_insertion_point(imports)\n"


def protos() -> list[str]:
    """Return the .proto files, relative to the repository's root, which makes their names unique in a descriptor pool.
    """
    return sorted(str(path.relative_to(ROOT)) for each in DIRECTORIES for path in (ROOT / each).glob("*.proto"))


def compile_into(root: Path) -> None:
    """Generate all modules under ``root``, in the repository's directory structure."""
    from grpc_tools import protoc  # noqa: PLC0415 - in the development extra only
    from importlib.resources import files  # noqa: PLC0415

    wellknown = files("grpc_tools") / "_proto"
    arguments = [f"-I{ROOT}", f"-I{wellknown}", f"--python_out={root}", f"--pyi_out={root}"]
    if protoc.main(["protoc", *arguments, *protos()]) != 0:
        raise SystemExit("protos: protoc failed")
    for directory in DIRECTORIES:
        for module in (root / directory).glob("*_pb2.py"):
            module.write_text(with_own_pool(module.read_text(), directory))


def with_own_pool(source: str, directory: Path) -> str:
    """Make a generated module register its messages in its package's ``POOL`` instead of the process's default pool."""
    if source.count(SHARED_POOL) != 1 or source.count(IMPORTS_END) != 1:
        raise SystemExit("protos: unexpected protoc output; adapt generate.py to this version of protoc")
    own_import = f"from {'.'.join(directory.parent.parts)} import {directory.name} as _protos\n"
    return source.replace(SHARED_POOL, OWN_POOL).replace(IMPORTS_END, own_import + IMPORTS_END)


def generated(root: Path) -> dict[str, str]:
    """Return the text of each generated module under ``root``, by its path there."""
    return {
        str(path.relative_to(root)): path.read_text()
        for directory in DIRECTORIES
        for path in (root / directory).glob("*_pb2.py*")
    }


def differences(committed_in: Path = ROOT) -> list[str]:
    """Return the paths of modules that are missing, outdated or obsolete."""
    with tempfile.TemporaryDirectory() as directory:
        compile_into(Path(directory))
        fresh, committed = generated(Path(directory)), generated(committed_in)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Generate, or check; return the exit status."""
    parser = argparse.ArgumentParser(prog="generate.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a module is out of date")
    if not parser.parse_args(arguments).check:
        compile_into(ROOT)
        return 0
    stale = differences()
    if stale:
        sys.stderr.write(f"protos: out of date: {', '.join(stale)}; run `make protos` and commit the changes\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
