"""Build the files of a release: `make dist`.

    python deploy/dist.py [--output DIRECTORY] [--repository URL] [--image NAME [--helm PROGRAM]]

Wheel, source distribution, chart, SBOM of the Python packages, lock files, systemd units, man page, completions, and
SHA256SUMS; with --helm, also the chart as plain manifests. Only files that git tracks are used. Two builds of a commit
are identical: all times are the commit's, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CHART = "deploy/helm/whalebridge"
COPIES = (
    "deploy/requirements-build.lock",
    "deploy/requirements-runtime.lock",
    "deploy/systemd/whalebridge.service",
    "deploy/systemd/whalebridge-proxy.service",
)
ICON = "docs/images/icon.svg"
LINKS = {  # of the chart; {} is the tag of the release
    "Documentation": "blob/{}/docs/kubernetes.md",
    "Changelog": "blob/{}/CHANGELOG.md",
    "Issues": "issues",
}
KUBERNETES = "1.29"  # the first version with sidecars, as which the chart runs the proxy
SHELLS = ("bash", "fish", "zsh")
CHECKSUMS = "SHA256SUMS"


def main() -> int:
    """Build all files in an empty directory, and print their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory, which is replaced")
    parser.add_argument("--repository", metavar="URL", help="repository, to which chart and alerts link")
    parser.add_argument("--image", metavar="REGISTRY/NAME", help="image of the chart, whose tag is the version")
    parser.add_argument("--helm", metavar="PROGRAM", help="helm, to write the manifests of the chart with its defaults")
    options = parser.parse_args()
    if options.helm and not options.image:
        parser.error("--helm: the manifests need an image; add --image")
    output: Path = options.output.resolve()
    os.environ["SOURCE_DATE_EPOCH"] = str(commit_time())
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        copy_source(source)
        build(source, output, options.repository, options.image)
        if options.helm:
            write_manifests(options.helm, source / CHART, output)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(output.iterdir())]
    (output / CHECKSUMS).write_text("".join(sums))
    sys.stdout.writelines(f"{path}\n" for path in sorted(output.iterdir()))
    return 0


def commit_time() -> int:
    """Return SOURCE_DATE_EPOCH, or the time of the commit in seconds since 1970, or 0 outside of a checkout."""
    if (epoch := os.environ.get("SOURCE_DATE_EPOCH")) or not (ROOT / ".git").exists():
        return int(epoch or 0)
    command = ["git", "show", "--no-patch", "--format=%ct", "HEAD"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def copy_source(directory: Path) -> None:
    """Copy the files that git tracks, or outside of a checkout all: an unpacked source distribution has no others."""
    if not (ROOT / ".git").exists():
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns("__pycache__"))
        return
    command = ["git", "ls-files", "-z"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)


def build(source: Path, output: Path, repository: str | None, image: str | None) -> None:
    """Build all files but the checksums."""
    run(source, "-m", "hatchling", "build", "--directory", str(output))
    release_chart(source, repository, image)  # not in the source distribution
    package_chart(source / CHART, output)
    run(
        *(source, "-m", "cyclonedx_py", "requirements", COPIES[1], "--pyproject", "pyproject.toml"),
        *("--mc-type", "application", "--output-reproducible", "--output-file", str(output / "whalebridge.cdx.json")),
    )
    for name in COPIES:
        shutil.copyfile(source / name, output / Path(name).name)
    (output / "whalebridge.1").write_text(run(source, "deploy/man_page.py"))
    for shell in SHELLS:
        script = run(source, "-m", "bridge", environment={"_WHALEBRIDGE_COMPLETE": f"source_{shell}"})
        (output / f"whalebridge.{shell}").write_text(script)


def release_chart(source: Path, repository: str | None, image: str | None) -> None:
    """Add to the chart where its source code, its documents and its image are."""
    path = source / CHART / "Chart.yaml"
    metadata = yaml.safe_load(path.read_text())
    if repository:
        tag = f"v{metadata['appVersion']}"
        metadata |= {"home": repository, "sources": [repository], "icon": f"{repository}/raw/{tag}/{ICON}"}
        for maintainer in metadata["maintainers"]:
            maintainer["url"] = repository
        links = [{"name": name, "url": f"{repository}/{path.format(tag)}"} for name, path in LINKS.items()]
        metadata["annotations"]["artifacthub.io/links"] = yaml.safe_dump(links, sort_keys=False)
    if image:
        values = source / CHART / "values.yaml"
        text = values.read_text()
        for name, default, value in zip(
            ("registry", "repository"), ('""', "whalebridge"), image.rsplit("/", 1), strict=True
        ):
            line = f"  {name}: {default}\n"
            if text.count(line) != 1:
                raise ValueError(f"{values}: not one line {line.strip()}")
            text = text.replace(line, f"  {name}: {json.dumps(value)}\n")
        values.write_text(text)
        images = [{"name": "whalebridge", "image": f"{image}:{metadata['appVersion']}"}]
        metadata["annotations"]["artifacthub.io/images"] = yaml.safe_dump(images, sort_keys=False)
        run(source, "deploy/helm/generate.py")  # the README has the default values
    path.write_text(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True))


def package_chart(chart: Path, output: Path) -> None:
    """Write the chart as `helm package` does, but with the commit's time."""
    metadata = yaml.safe_load((chart / "Chart.yaml").read_text())
    # The same files as helm: .helmignore excludes hidden files and packages.
    files = [path for path in sorted(chart.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            entry = tarfile.TarInfo(f"{metadata['name']}/{path.relative_to(chart)}")
            entry.size, entry.mtime = path.stat().st_size, commit_time()
            with path.open("rb") as file:
                tar.addfile(entry, file)
    package = output / f"{metadata['name']}-{metadata['version']}.tgz"
    package.write_bytes(gzip.compress(archive.getvalue(), mtime=commit_time()))


def write_manifests(helm: str, chart: Path, output: Path) -> None:
    """Write the objects of the chart with its default values."""
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["version"]
    command = [helm, "template", "whalebridge", str(chart), "--namespace=whalebridge", "--skip-tests"]
    command.append(f"--kube-version={KUBERNETES}")  # not the newest that this version of helm knows
    manifests = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (output / f"whalebridge-{version}.yaml").write_text(manifests)


def run(source: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run Python with the modules of the source; return standard output."""
    variables = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=source, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
