"""Install the components of the tests in a cache outside the checkout; later runs only check the stamps.

The machine itself is not changed. Go programs are built from Go modules into `bin/`; other files of Go modules are
copied. Debian packages are downloaded by
apt-get and unpacked below `debian/`: no service is started, and installed packages are not affected. Jars are
downloaded by Maven, packages of Node.js by npm. To add a peer, add it to COMPONENTS. Components that take long and that
few tests need form a separate group, and are installed only by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.testbed.components import (
    Component,
    DebianPackages,
    GoModuleFiles,
    GoPrograms,
    GoSource,
    InstallError,
    MavenJars,
    MinimalDebian,
    NpmPackages,
    cache_directory,
)

_CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
_CONTAINERD_GO = tuple(f"./cmd/{program}" for program in _CONTAINERD)
_KAFKA_VERSION = "4.3.1"
_SLF4J_VERSION = "1.7.36"  # as Kafka's own slf4j-api

COMPONENTS: tuple[Component, ...] = (
    DebianPackages("busybox", ("busybox-static",), ("busybox",)),
    DebianPackages("runc", ("runc",), ("runc",)),
    DebianPackages("containerd-1.6", ("containerd",), _CONTAINERD),
    DebianPackages("cni", ("containernetworking-plugins",), ("bridge",)),
    DebianPackages("docker", ("docker.io", "libdevmapper1.02.1"), ("dockerd", "docker")),
    GoPrograms("containerd-2.4", "github.com/containerd/containerd/v2", "v2.4.2", _CONTAINERD_GO, tags="no_btrfs"),
    GoPrograms("nerdctl", "github.com/containerd/nerdctl/v2", "v2.1.2", ("./cmd/nerdctl",)),
    MavenJars("kafka", (f"org.apache.kafka:kafka_2.13:{_KAFKA_VERSION}", f"org.slf4j:slf4j-simple:{_SLF4J_VERSION}")),
    MavenJars("kafka-tools", (f"org.apache.kafka:kafka-tools:{_KAFKA_VERSION}",)),
    DebianPackages("kcat", ("kcat", "librdkafka1", "libyajl2", "libsasl2-2"), ("kcat",)),
    DebianPackages("systemd", ("systemd", "libsystemd-shared", "libsystemd0"), ("systemd-analyze",)),
    DebianPackages("nats-server-2.9", ("nats-server",), ("nats-server",)),
    GoPrograms("nats-server", "github.com/nats-io/nats-server/v2", "v2.15.2", (".",)),
    GoPrograms("nats", "github.com/nats-io/natscli", "v0.5.1", ("./nats",)),
    DebianPackages("debootstrap", ("debootstrap",), ("debootstrap",)),
    DebianPackages("chromium", ("chromium",), ("chromium",), complete=True),
    DebianPackages("prometheus", ("prometheus",), ("prometheus", "promtool")),
    DebianPackages("alertmanager", ("prometheus-alertmanager",), ("prometheus-alertmanager",)),
    GoSource(Path(__file__).parents[1] / "bench" / "flood"),
    GoPrograms("actionlint", "github.com/rhysd/actionlint", "v1.7.12", ("./cmd/actionlint",)),
    NpmPackages("asyncapi-parser", ("@asyncapi/parser@3.6.6",)),
    MinimalDebian("debian-12", "bookworm", ("dbus", "python3-venv", "systemd")),
)

_KUBERNETES_VERSION = "1.34.2"
_VERSION_FLAGS = (("gitVersion", f"v{_KUBERNETES_VERSION}"), ("gitMajor", "1"), ("gitMinor", "34"))
_MONITORING_CRDS = tuple(
    f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml"
    for name in ("podmonitors", "prometheusrules", "servicemonitors")
)
_CILIUM_CRDS = ("pkg/k8s/apis/cilium.io/client/crds/v2/ciliumnetworkpolicies.yaml",)
_KUBERNETES_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")

KUBERNETES: tuple[Component, ...] = (
    MinimalDebian("debian-13", "trixie"),
    GoPrograms("helm", "helm.sh/helm/v3", "v3.22.0", ("./cmd/helm",)),
    GoSource(
        Path(__file__).parent / "go" / "kubernetes",
        (
            ("etcd", "go.etcd.io/etcd/server/v3"),
            *((name, f"k8s.io/kubernetes/cmd/{name}") for name in _KUBERNETES_COMMANDS),
        ),
        ldflags=" ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in _VERSION_FLAGS),
    ),
    GoModuleFiles(
        "prometheus-operator-crds", "github.com/prometheus-operator/prometheus-operator", "v0.85.0", _MONITORING_CRDS
    ),
    GoModuleFiles("cilium-crds", "github.com/cilium/cilium", "v1.20.2", _CILIUM_CRDS),
)
"""Additional components for the tests of image and chart; a Kubernetes node takes minutes to build."""


def missing(names: Iterable[str] = ()) -> list[str]:
    """Return the named components (default: COMPONENTS) that are missing or out of date."""
    return [component.name for component in _select(names) if not _is_installed(component)]


def search_path(*names: str) -> str:
    """Return a PATH that starts with the directories of the named components, in that order."""
    directories = [directory for name in names for directory in _select([name])[0].directories()]
    return os.pathsep.join([*map(str, directories), os.environ.get("PATH", os.defpath)])


def install(names: Iterable[str] = ()) -> None:
    """Install the named components (default: COMPONENTS); print each step and its duration."""
    components = _select(names)
    if all(map(_is_installed, components)):
        installed = ", ".join(component.name for component in components)
        print(f"testbed: {installed}: already installed in {cache_directory()}", flush=True)
        return
    cache_directory().mkdir(parents=True, exist_ok=True)
    with _install_lock(cache_directory() / "lock"):
        for stale in cache_directory().glob("staging-*"):  # left by an installation that was killed
            shutil.rmtree(stale)
        for component in components:
            if _is_installed(component):
                continue
            print(f"testbed: {component.name}: installing ({component.recipe}) ...", flush=True)
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="staging-") as staging:
                component.install(Path(staging))
            _check_installed(component)
            _stamp_file(component).parent.mkdir(exist_ok=True)
            _stamp_file(component).write_text(component.recipe)
            print(f"testbed: {component.name}: done in {time.monotonic() - started:.0f} s", flush=True)


def _select(names: Iterable[str]) -> list[Component]:
    known = {component.name: component for component in (*COMPONENTS, *KUBERNETES)}
    # A minimal Debian needs root, as all tests that use one.
    possible = [each for each in COMPONENTS if os.geteuid() == 0 or not isinstance(each, MinimalDebian)]
    names = list(names) or [component.name for component in possible]
    if unknown := [name for name in names if name not in known]:
        raise InstallError(f"unknown component {', '.join(unknown)}; use one of {', '.join(known)}")
    return [known[name] for name in names]


def _stamp_file(component: Component) -> Path:
    return cache_directory() / "stamps" / component.name


def _is_installed(component: Component) -> bool:
    stamp = _stamp_file(component)
    return stamp.is_file() and stamp.read_text() == component.recipe and not component.missing()


def _check_installed(component: Component) -> None:
    if missing_files := component.missing():
        raise InstallError(
            f"{component.name}: {', '.join(missing_files)} not found after installing {component.recipe}"
        )


@contextlib.contextmanager
def _install_lock(path: Path) -> Iterator[None]:
    """Allow only one installation at a time; the kernel releases the lock if the process is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("testbed: waiting for another installation to finish ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
