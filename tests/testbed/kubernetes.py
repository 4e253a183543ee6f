"""A single-node Kubernetes cluster: etcd, apiserver, scheduler, controller manager, and a kubelet on containerd 2.4.

It runs in private network and mount namespaces: programs use their default ports and directories (/run/containerd,
/var/lib, /var/log) without affecting this machine, which connects to the node at `ip`.
"""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.eventually import eventually
from tests.testbed import image
from tests.testbed.components import cache_directory
from tests.testbed.containerd import Containerd, busybox_path, components
from tests.testbed.install import search_path
from tests.testbed.logind import Logind
from tests.testbed.process import run
from tests.testbed.sandbox import LINKS_FILE

COMPONENTS = (*components("2.4"), "helm", "kubernetes", "nats-server")
"""Components that must be installed for a Node with NATS."""

CRDS = ("prometheus-operator-crds", "cilium-crds")
"""Components with the CustomResourceDefinitions of `Node.create_crds`."""

NODE_NAME = "node-1"
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
POD_CIDR = "10.88.0.0/23"
_APISERVER = "https://127.0.0.1:6443"

# Without CAP_SYS_RESOURCE, sandboxes start only with restrict_oom_score_adj.
_CONTAINERD_CONFIG = """\
version = 3
root = "{directory}/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{address}"
[ttrpc]
  address = "{address}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{directory}/cni"
"""


class Node(Containerd):
    """A node that is Ready and has the busybox image within the context, and is removed with its pods on exit."""

    UNSHARE_FLAGS = ("mount", "net")
    PRIVATE_PATHS = ("/var/lib", "/var/log")

    def __init__(self) -> None:
        super().__init__("2.4")
        self.address = "/run/containerd/containerd.sock"
        self.env["PATH"] = search_path(*COMPONENTS)
        self.env |= {
            f"HELM_{name}_HOME": f"{self.directory}/helm/{name.lower()}" for name in ("CACHE", "CONFIG", "DATA")
        }
        self.env["KUBECONFIG"] = f"{self.directory}/kubeconfig"
        used = {link.name for link in Path("/sys/class/net").glob("whale*")}  # by other nodes
        free = [number for number in range(512) if f"whale{number}" not in used]
        network = random.choice(free)  # noqa: S311 - no secret
        self.link = f"whale{network}"
        self._net = f"198.{18 + network // 256}.{network % 256}"  # reserved for tests (RFC 2544)
        self.ip = f"{self._net}.2"
        self.audit = self.directory / "audit.jsonl"
        self._programs: list[subprocess.Popen[bytes]] = []
        self._logind: Logind | None = None

    def start(self) -> None:
        """Start all programs, and wait until the node is Ready; later calls start only containerd."""
        is_first_start = self._sandbox is None
        self._prepare()
        super().start()
        if not is_first_start:
            return
        self.import_image("k8s.io")
        self._import_pause()
        self._logind = Logind(self.directory / "system_bus")
        self.env["DBUS_SYSTEM_BUS_ADDRESS"] = self._logind.address
        for program in (self._start_etcd(), self._start_apiserver()):
            self._launch(*program)
        eventually(self._is_apiserver_ready, "the apiserver to be ready", within=90)
        for program in (self._start_scheduler(), self._start_controller_manager(), self._start_kubelet()):
            self._launch(*program)
        eventually(self._is_ready, "the node to be Ready", within=120)

    def kubectl(self, *args: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as an administrator; with `check`, a failure raises CommandError with its output."""
        command = ["kubectl", f"--cache-dir={self.directory}/kubectl", *args]
        return run(self.sandboxed_command(*command), env=self.env, timeout=timeout, check=check)

    def get(self, *args: str) -> Any:
        """Return the decoded JSON output of `kubectl get`."""
        return json.loads(self.kubectl("get", *args, "--output=json").stdout)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or update objects."""
        file = self.directory / f"{secrets.token_hex(4)}.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        self.kubectl("apply", f"--filename={file}")

    def create_crds(self) -> None:
        """Create the CustomResourceDefinitions of the Prometheus operator and of Cilium, but not their controllers."""
        files = [f"--filename={cache_directory() / name}" for name in CRDS]
        self.kubectl("apply", "--server-side", *files)  # one is too large for the annotation of `apply` alone
        self.kubectl("wait", "--for=condition=Established", *files)

    def helm(self, *args: str, timeout: float = 180, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Helm as an administrator; with `check`, a failure raises CommandError with its output."""
        return run(self.sandboxed_command("helm", *args), env=self.env, timeout=timeout, check=check)

    def shut_down(self, timeout: float = 120) -> None:
        """Let the kubelet stop all pods, as at the graceful shutdown of a machine; it starts none until `resume_pods`.

        Raises:
            TimeoutError: The kubelet has not stopped them in time.
        """
        if self._logind is None:
            raise RuntimeError("the node was never started")
        self._logind.shut_down(timeout)

    def resume_pods(self) -> None:
        """Cancel `shut_down`, and wait until the node is Ready."""
        if self._logind is None:
            raise RuntimeError("the node was never started")
        self._logind.cancel_shutdown()
        eventually(self._is_ready, "the node to be Ready", within=120)

    def start_nats(self) -> str:
        """Start a nats-server in the node's network; return its URL for pods and for this machine."""
        store = self.directory / "nats"
        self._launch("nats-server", "-js", "-sd", str(store), "-a", "0.0.0.0", "-m", "8222")  # noqa: S104
        url = f"http://{self.ip}:8222/healthz"
        eventually(lambda: _responds(url), "nats-server to respond")
        return f"nats://{self.ip}:4222"

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        super().close()
        if self._logind is not None:
            self._logind.close()
        for program in self._programs:
            program.wait(20)

    def _prepare(self) -> None:
        if self._sandbox is not None:
            return
        self._sandbox = self._start_sandbox()
        (self.directory / LINKS_FILE).write_text("eth0\n")  # deleting one end of the pair deletes both
        peer = ["peer", "name", "eth0", "netns", str(self._sandbox.pid)]
        run(["ip", "link", "add", self.link, "type", "veth", *peer])
        run(["ip", "address", "add", f"{self._net}.1/24", "dev", self.link])
        run(["ip", "link", "set", self.link, "up"])
        run(self.sandboxed_command("ip", "link", "set", "lo", "up"))
        run(self.sandboxed_command("ip", "address", "add", f"{self.ip}/24", "dev", "eth0"))
        run(self.sandboxed_command("ip", "link", "set", "eth0", "up"))
        # The apiserver needs a default route to determine its own address.
        run(self.sandboxed_command("ip", "route", "add", "default", "via", f"{self._net}.1"))
        self._write_files()

    def _write_config(self) -> str:
        plugins = next(Path(path) for path in search_path("cni").split(":") if Path(path, "ptp").exists())
        return _CONTAINERD_CONFIG.format(
            directory=self.directory, address=self.address, pause=PAUSE_IMAGE, plugins=plugins
        )

    def _write_files(self) -> None:
        token = secrets.token_hex(16)
        files = {
            "cni/10-ptp.conflist": json.dumps(self._create_network()),
            "tokens.csv": f'{token},admin,admin,"system:masters"\n',
            "kubeconfig": json.dumps(_kubeconfig(token)),
            "kubelet.json": json.dumps(self._kubelet_configuration()),
            "audit.json": json.dumps(
                {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
            ),
        }
        for name, text in files.items():
            (self.directory / name).parent.mkdir(exist_ok=True)
            (self.directory / name).write_text(text)
        key = self.directory / "accounts.key"
        run(["openssl", "genrsa", "-out", str(key), "2048"])
        run(["openssl", "rsa", "-in", str(key), "-pubout", "-out", f"{key}.pub"])

    def _create_network(self) -> dict[str, Any]:
        ranges, routes = [[{"subnet": POD_CIDR}]], [{"dst": "0.0.0.0/0"}]
        ipam = {"type": "host-local", "dataDir": f"{self.directory}/ipam", "ranges": ranges, "routes": routes}
        return {"cniVersion": "1.0.0", "name": "testbed", "plugins": [{"type": "ptp", "ipam": ipam}]}

    def _kubelet_configuration(self) -> dict[str, Any]:
        # sandbox.py removes the cgroups below this one.
        for controller in _cgroup_controllers():
            (controller / self.directory.name).mkdir()
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.directory.name}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "maxPods": 250,
            "containerRuntimeEndpoint": f"unix://{self.address}",
            "resolvConf": "",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "shutdownGracePeriod": "60s",
            "shutdownGracePeriodCriticalPods": "20s",
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%"},
        }

    def _import_pause(self) -> None:
        archive = self.directory / "pause.tar"
        archive.write_bytes(image.oci_archive(busybox_path(), PAUSE_IMAGE, ["sleep", "2000000000"]))
        self.ctr("images", "import", str(archive), namespace="k8s.io")

    def _start_etcd(self) -> tuple[str, ...]:
        return ("etcd", f"--data-dir={self.directory}/etcd", "--unsafe-no-fsync")

    def _start_apiserver(self) -> tuple[str, ...]:
        directory = self.directory
        return (
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=6443",
            f"--advertise-address={self.ip}",
            f"--cert-dir={directory}/certificates",
            f"--token-auth-file={directory}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.local",
            f"--service-account-key-file={directory}/accounts.key.pub",
            f"--service-account-signing-key-file={directory}/accounts.key",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={directory}/audit.json",
            f"--audit-log-path={self.audit}",
        )

    def _start_scheduler(self) -> tuple[str, ...]:
        return ("kube-scheduler", f"--kubeconfig={self.env['KUBECONFIG']}", "--leader-elect=false")

    def _start_controller_manager(self) -> tuple[str, ...]:
        return (
            "kube-controller-manager",
            f"--kubeconfig={self.env['KUBECONFIG']}",
            "--leader-elect=false",
            f"--service-account-private-key-file={self.directory}/accounts.key",
            f"--root-ca-file={self.directory}/certificates/apiserver.crt",
        )

    def _start_kubelet(self) -> tuple[str, ...]:
        return (
            "kubelet",
            f"--config={self.directory}/kubelet.json",
            f"--kubeconfig={self.env['KUBECONFIG']}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={self.ip}",
            f"--root-dir={self.directory}/kubelet",
            f"--cert-dir={self.directory}/kubelet-certificates",
        )

    def _launch(self, *command: str) -> None:
        self._programs.append(self.spawn(*command, log=self.directory / f"{command[0]}.log"))

    def _check_programs(self) -> None:
        for program in self._programs:
            if program.poll() is not None:
                name = str(list(program.args)[4])  # type: ignore[arg-type]
                raise RuntimeError(f"{name} exited: {(self.directory / f'{name}.log').read_text()[-3000:]}")

    def _is_apiserver_ready(self) -> bool:
        self._check_programs()
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def _is_ready(self) -> bool:
        self._check_programs()
        path = "--output=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
        account = self.kubectl("get", "serviceaccount", "default", check=False)
        return account.returncode == 0 and self.kubectl("get", "nodes", path).stdout == "True"


def _cgroup_controllers() -> list[Path]:
    """Return the cgroup hierarchies: one with cgroup v2, several with v1."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified"]


def _kubeconfig(token: str) -> dict[str, Any]:
    cluster = {"server": _APISERVER, "insecure-skip-tls-verify": True}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "admin"}}],
        "current-context": "testbed",
    }


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - the URL is ours
            return True
    except OSError:
        return False
