"""The chart on a real node: starts and exits of pods are published to NATS exactly once, across restarts of the bridge.

The tests compare the records with the status of the pods in Kubernetes.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge import __version__
from tests.bridge_process import running_after
from tests.eventually import eventually
from tests.integration.delivery import check_gapless
from tests.kubernetes.manifests import container, pod
from tests.kubernetes.random_values import valid_values
from tests.kubernetes.records import StreamReader, pod_of, running_tasks, transitions
from tests.kubernetes.rendering import CHART, DISTRIBUTIONS, EXAMPLES, render
from tests.scale import scaled
from tests.testbed.bridge_image import NAME as IMAGE
from tests.testbed.kubernetes import CRDS, NODE_NAME, POD_CIDR, Node

pytestmark = pytest.mark.timeout(900)

NAMESPACE = "whales"
DOCS = CHART.parents[2] / "docs"
CONCURRENT_PODS = scaled(reduced=30, full=100)


@pytest.fixture(scope="module")
def stream_reader(node: Node) -> StreamReader:
    """Install the chart, and return a reader of its records."""
    url = node.start_nats()
    node.kubectl("create", "namespace", NAMESPACE)
    node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")
    install(node, "install", url)
    return StreamReader(url)


def install(node: Node, command: str, url: str, *flags: str) -> None:
    config = {"sinks": {"main": f"{url}/containers"}, "log": {"level": "debug"}}
    base_flags = ["--set=image.pullPolicy=Never", "--set=resourceQuota.enabled=true", f"--namespace={NAMESPACE}"]
    node.helm(command, "whalebridge", str(CHART), *base_flags, f"--set-json=config={json.dumps(config)}", *flags)
    wait_rolled_out(node)


def wait_rolled_out(node: Node) -> None:
    # Helm's --wait accepts maxUnavailable missing pods: on one node, all of them.
    node.kubectl(
        "rollout", "status", "daemonset/whalebridge", f"--namespace={NAMESPACE}", "--timeout=120s", timeout=150
    )


def bridge_pods(node: Node) -> list[dict[str, Any]]:
    """Return the DaemonSet's pods: temporarily none or two, while one is replaced."""
    items = node.get("pods", f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/name=whalebridge")["items"]
    return [each for each in items if each["metadata"].get("ownerReferences")]


def bridge_pod(node: Node) -> dict[str, Any]:
    """Return the DaemonSet's only pod."""
    (daemon_pod,) = bridge_pods(node)
    return daemon_pod


def is_ready(item: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in item["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def wait_finished(node: Node, name: str, *, phase: str) -> dict[str, Any]:
    eventually(lambda: node.get("pod", name)["status"]["phase"] == phase, f"{name} {phase}", within=90)
    return dict(node.get("pod", name))


def container_exits(item: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return id and exit code of the exited containers in the status of a pod, by name."""
    status = item["status"]
    exits = {}
    for each in (*status.get("initContainerStatuses", ()), *status["containerStatuses"]):
        terminated = each["state"].get("terminated") or each.get("lastState", {}).get("terminated")
        if terminated:
            exits[each["name"]] = (terminated["containerID"].removeprefix("containerd://"), terminated["exitCode"])
    return exits


def test_pod_containers_are_published_with_pod_and_exit_status(node: Node, stream_reader: StreamReader) -> None:
    first = container("first", "exit 0")
    two = [container("good", "sleep 1"), container("bad", "sleep 1; exit 3")]
    node.apply(pod("several", *two, initContainers=[first]))
    item = wait_finished(node, "several", phase="Failed")
    expected = container_exits(item)
    assert {name: code for name, (_, code) in expected.items()} == {"first": 0, "good": 0, "bad": 3}
    expected_counts = {("several", name, kind): 1 for name in expected for kind in ("started", "exited")}
    stream_reader.wait(lambda all_: expected_counts.keys() <= transitions(all_).keys(), "all records about the pod")
    time.sleep(3)  # a duplicate exit would arrive within seconds
    records = stream_reader.of_pod("several")
    assert transitions(records) == expected_counts
    for record in records:
        pod_info = pod_of(record)
        id_, code = expected[pod_info["container"]]
        assert record["container"]["id"] == id_
        assert (pod_info["namespace"], pod_info["uid"]) == ("default", item["metadata"]["uid"])
        assert pod_info["labels"]["app"] == "several"
        assert record["host"] == NODE_NAME
        assert record["container"]["image_digest"] == node.image_digest(record["container"]["image"], "k8s.io")
        if record["type"] == "exited":
            assert record["exit"]["status"] == code


def test_crash_loop_is_published_per_incarnation(node: Node, stream_reader: StreamReader) -> None:
    node.apply(pod("crashing", container("main", "exit 7"), restart="Always"))

    def restarts() -> int:
        (status,) = node.get("pod", "crashing")["status"].get("containerStatuses") or [{"restartCount": 0}]
        return int(status["restartCount"])

    eventually(lambda: restarts() >= 2, "two restarts", within=90)
    node.kubectl("delete", "pod", "crashing", "--wait=true")
    stream_reader.wait(lambda all_: transitions(all_)["crashing", "main", "exited"] >= 3, "three exits")
    records = stream_reader.of_pod("crashing")
    counts = transitions(records)
    assert counts["crashing", "main", "started"] == counts["crashing", "main", "exited"]
    assert {record["exit"]["status"] for record in records if record["type"] == "exited"} == {7}
    incarnations = Counter((record["container"]["incarnation"], record["type"]) for record in records)
    assert set(incarnations.values()) == {1}


def test_oom_killed_pod_is_published_with_oom(node: Node, stream_reader: StreamReader) -> None:
    node.apply(pod("greedy", container("main", "tail", "/dev/zero", memory="24Mi")))
    item = wait_finished(node, "greedy", phase="Failed")
    assert item["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    stream_reader.wait(lambda all_: transitions(all_)["greedy", "main", "exited"], "the exit")
    (record,) = [record for record in stream_reader.of_pod("greedy") if record["type"] == "exited"]
    assert record["exit"]["status"] == 137
    # If the deletion event arrives before the exit event, the exit is inferred. Then CRI may know of the OOM kill.
    assert record["exit"]["oom"] is True or (record["origin"] == "inferred" and record["exit"]["oom"] is None)


@pytest.mark.usefixtures("stream_reader")
def test_chart_helm_test_succeeds(node: Node) -> None:
    run_helm_test(node)


def run_helm_test(node: Node) -> None:
    output = node.helm("test", "whalebridge", f"--namespace={NAMESPACE}").stdout
    assert "Phase:          Succeeded" in output


def test_pods_are_published_once_when_many_run_concurrently(node: Node, stream_reader: StreamReader) -> None:
    names = [f"many-{number}" for number in range(CONCURRENT_PODS)]
    node.apply(*(pod(name, container("main", "trap 'exit 5' TERM; sleep 1000 & wait")) for name in names))

    def phases() -> Counter[str]:
        items = [each for each in node.get("pods")["items"] if each["metadata"]["name"] in names]
        return Counter(each["status"]["phase"] for each in items)

    eventually(lambda: phases()["Running"] == len(names), "all pods to run", within=400)
    node.kubectl("delete", "pods", *names, "--wait=true", timeout=300)
    expected = {(name, "main", kind): 1 for name in names for kind in ("started", "exited")}
    stream_reader.wait(
        lambda all_: expected.keys() <= transitions(all_).keys(), "the records about all pods", timeout=60
    )
    time.sleep(3)
    records = stream_reader.all()
    counts = transitions(records)
    assert {key: count for key, count in counts.items() if key[0] in names} == expected
    statuses = Counter(
        record["exit"]["status"]
        for record in records
        if record["type"] == "exited" and pod_of(record).get("name") in names
    )
    assert set(statuses) <= {5, 137}  # a container that is still starting is killed after 1 s
    check_gapless(records)


def test_fault_41_bridge_pod_is_replaced(node: Node, stream_reader: StreamReader) -> None:
    node.apply(pod("steady", container("main", "while true; do sleep 0.5; done"), restart="Always"))
    start_pod(node, stream_reader, "doomed")
    before = bridge_pod(node)["metadata"]["uid"]
    node.kubectl("delete", "pod", bridge_pod(node)["metadata"]["name"], f"--namespace={NAMESPACE}", "--wait=false")
    node.kubectl("delete", "pod", "doomed", "--wait=true")
    # A run that also ends before the new pod connects would not be published.
    node.apply(pod("meanwhile", container("main", "trap 'exit 4' TERM; sleep 1000 & wait")))
    eventually(
        lambda: [each["metadata"]["uid"] != before and is_ready(each) for each in bridge_pods(node)] == [True],
        "a new bridge pod to be ready", within=90,
    )  # fmt: skip
    stream_reader.wait(lambda all_: transitions(all_)["meanwhile", "main", "started"], "the start during the restart")
    node.kubectl("delete", "pod", "meanwhile", "--wait=true")
    run_helm_test(node)
    install(node, "upgrade", stream_reader.url, "--set=podAnnotations.example\\.net/again=yes")
    node.helm("rollback", "whalebridge", f"--namespace={NAMESPACE}")
    wait_rolled_out(node)
    for part in ("proxy", "bridge"):
        start_pod(node, stream_reader, f"beside-{part}")
        os.kill(process_id(node, part), signal.SIGKILL)
        node.kubectl("delete", "pod", f"beside-{part}", "--wait=true")
    names = ("doomed", "meanwhile", "beside-proxy", "beside-bridge")
    records = stream_reader.wait(
        lambda all_: all(transitions(all_)[name, "main", "exited"] for name in names), "the exits during the restarts"
    )
    eventually(lambda: is_ready(bridge_pod(node)), "the bridge pod to be ready again", within=60)
    run_helm_test(node)
    assert len({record["epoch"] for record in records}) >= 5
    check_gapless(records)
    counts = transitions(records)
    for name in names:
        assert (counts[name, "main", "started"], counts[name, "main", "exited"]) == (1, 1)
    snapshots = [record["snapshot"] for record in records if record["type"] == "snapshot_started"]
    assert all(snapshot["since"] is not None for snapshot in snapshots if snapshot["previous"])
    assert {"start", "reconnect"} <= {snapshot["reason"] for snapshot in snapshots}

    def agrees() -> bool:
        return set(running_after(stream_reader.all())) == running_tasks(node)

    eventually(agrees, "the records to match the running containers", within=60)


def restarts(item: dict[str, Any]) -> list[int]:
    """Return how often each container of a pod was restarted."""
    return [each["restartCount"] for each in item["status"]["containerStatuses"]]


def start_pod(node: Node, stream_reader: StreamReader, name: str) -> None:
    """Start a pod, and wait until its start is published."""
    node.apply(pod(name, container("main", "sleep 1000")))
    stream_reader.wait(lambda all_: transitions(all_)[name, "main", "started"], f"the start of {name}")


@pytest.mark.usefixtures("stream_reader")
def test_second_bridge_pod_waits_while_first_holds_state_dir(node: Node) -> None:
    template = node.get("daemonset", "whalebridge", f"--namespace={NAMESPACE}")["spec"]["template"]
    second = {"apiVersion": "v1", "kind": "Pod", "spec": {**template["spec"], "nodeName": NODE_NAME}}
    second["metadata"] = {"name": "second", "namespace": NAMESPACE, "labels": {"app": "second"}}
    node.apply(second)

    def log() -> str:
        command = ["logs", "second", "--container=bridge", f"--namespace={NAMESPACE}"]
        return node.kubectl(*command, check=False).stdout

    try:
        eventually(lambda: "outbox_open_failed" in log(), "the second instance to wait", within=60)
        assert "/var/lib/whalebridge: in use" in log()
        second_pod = node.get("pod", "second", f"--namespace={NAMESPACE}")
        assert not is_ready(second_pod)
        statuses = [*second_pod["status"]["initContainerStatuses"], *second_pod["status"]["containerStatuses"]]
        assert [each["restartCount"] for each in statuses] == [0, 0, 0]
        assert is_ready(bridge_pod(node))
    finally:
        node.kubectl("delete", "pod", "second", f"--namespace={NAMESPACE}", "--wait=true")


@pytest.mark.usefixtures("stream_reader")
def test_bridge_pod_runs_unprivileged(node: Node) -> None:
    script = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    for part in ("bridge", "proxy"):
        assert run_python(node, part, script).split() == ["65532", "0000000000000000"]
        assert run_python(node, part, "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))") == "False\n"
        writable = "import os; print(os.statvfs('/run/containerd').f_flag & os.ST_RDONLY == 0)"
        assert run_python(node, part, writable) == "False\n"


@pytest.mark.usefixtures("stream_reader")
def test_bridge_pod_serves_no_containers_on_both_families(node: Node) -> None:
    address = bridge_pod(node)["status"]["podIP"]
    script = f"""
import http.client
for host in ("127.0.0.1", "::1", "{address}"):
    for path in ("/livez", "/metrics", "/", "/containers"):
        client = http.client.HTTPConnection(host, 9469, timeout=10)
        client.request("GET", path)
        print(client.getresponse().status, end=" ")
"""
    assert run_python(node, "bridge", script).split() == ["200", "200", "403", "403"] * 3


def run_python(node: Node, part: str, script: str) -> str:
    """Run a script in a container of the bridge's pod; return its output."""
    name = bridge_pod(node)["metadata"]["name"]
    command = ["exec", name, f"--container={part}", f"--namespace={NAMESPACE}", "--", "/opt/whalebridge/bin/python"]
    return node.kubectl(*command, "-Ic", script).stdout


@pytest.mark.usefixtures("stream_reader")
def test_resource_quota_counts_bridge_pods(node: Node) -> None:
    def used() -> str:
        quota = node.get("resourcequota", "whalebridge", f"--namespace={NAMESPACE}")
        return str(quota["status"].get("used", {}).get("pods"))

    eventually(lambda: used() == "1", "the quota of the priority class to count the pod", within=60)


def test_chart_upgrade_from_older_chart_keeps_pods(node: Node, stream_reader: StreamReader, tmp_path: Path) -> None:
    older = older_chart(tmp_path)
    flags = ["--reset-values", "--set=image.pullPolicy=Never", f"--namespace={NAMESPACE}"]
    config = {"sinks": {"main": f"{stream_reader.url}/containers"}, "log": {"level": "debug"}}
    node.helm("upgrade", "whalebridge", str(older), *flags, f"--set-json=config={json.dumps(config)}")
    wait_rolled_out(node)
    before = bridge_pod(node)["metadata"]["uid"]
    upgrade = ["upgrade", "whalebridge", str(CHART), f"--namespace={NAMESPACE}"]
    failed = node.helm(*upgrade, "--reuse-values", check=False)
    assert failed.returncode
    assert "resourceQuota" in failed.stderr
    assert "nil pointer" not in failed.stderr
    node.helm(*upgrade, "--reset-then-reuse-values")
    values = node.helm("get", "values", "whalebridge", f"--namespace={NAMESPACE}", "--output=json").stdout
    assert json.loads(values) == {"config": config, "image": {"pullPolicy": "Never"}}
    wait_rolled_out(node)
    assert bridge_pod(node)["metadata"]["uid"] == before
    notes = node.helm("get", "notes", "whalebridge", f"--namespace={NAMESPACE}").stdout
    assert "connections to DNS and to the ports 4222." in notes


def older_chart(directory: Path) -> Path:
    """Return a copy of the chart with another version, and without a group of values and its template."""
    chart = directory / "whalebridge"
    shutil.copytree(CHART, chart)
    metadata, values = chart / "Chart.yaml", chart / "values.yaml"
    metadata.write_text(metadata.read_text().replace(f"\nversion: {__version__}\n", "\nversion: 0.0.1\n"))
    values.write_text(values.read_text().replace("\nresourceQuota:\n", "\nolder:\n"))
    for name in ("values.schema.json", "templates/resourcequota.yaml"):
        (chart / name).unlink()
    return chart


def test_changed_filter_takes_effect_without_restart(node: Node, stream_reader: StreamReader) -> None:
    install(node, "upgrade", stream_reader.url)
    name = f"filter-{secrets.token_hex(3)}"
    labels = {"labels": {"exclude": [f"io.kubernetes.pod.name={name}-excluded"]}}
    before = bridge_pod(node)
    install(node, "upgrade", stream_reader.url, f"--set-json=config.containers={json.dumps(labels)}")
    # The kubelet updates the volumes of a pod that changes at once, and of others after a minute or more.
    node.kubectl(
        "annotate", "pod", before["metadata"]["name"], f"--namespace={NAMESPACE}", "whalebridge.test/changed=yes"
    )

    def log() -> str:
        command = ["logs", before["metadata"]["name"], "--container=bridge", f"--namespace={NAMESPACE}"]
        return node.kubectl(*command).stdout

    eventually(lambda: '"settings_reloaded"' in log(), "the reload", within=180)
    node.apply(pod(f"{name}-excluded", container("main", "exit 0")), pod(f"{name}-kept", container("main", "exit 0")))
    for suffix in ("excluded", "kept"):
        wait_finished(node, f"{name}-{suffix}", phase="Succeeded")
    stream_reader.wait(lambda all_: transitions(all_)[f"{name}-kept", "main", "exited"], "the exit of a pod")
    assert not stream_reader.of_pod(f"{name}-excluded")
    after = bridge_pod(node)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert restarts(after) == restarts(before)
    install(node, "upgrade", stream_reader.url, "--set-json=config.outbox.max_records=5000000")
    assert bridge_pod(node)["metadata"]["uid"] != before["metadata"]["uid"], "the outbox needs a restart"
    check_gapless(stream_reader.all())


def test_api_server_accepts_objects_of_presets_and_random_values(
    node: Node, tmp_path: Path, require: Callable[..., None]
) -> None:
    require(*CRDS)
    node.create_crds()
    paths = list(EXAMPLES)
    presets = {name: {"distribution": name, "image": {"pullPolicy": "Never"}} for name in DISTRIBUTIONS}
    random_ones = {str(seed): valid_values(seed) for seed in range(scaled(reduced=10, full=200))}
    for name, values in (presets | random_ones).items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(json.dumps(values))
    for path in paths:
        objects = render(flags=[f"--values={path}"], release="sample")
        for each in objects:
            each["metadata"]["namespace"] = "default"  # others do not exist
        file = node.directory / "sample.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        created = node.kubectl("create", "--dry-run=server", f"--filename={file}", check=False)
        assert created.returncode == 0, (path, created.stderr)
        assert len(created.stdout.splitlines()) == len(objects)


@pytest.mark.parametrize(
    "flags",
    [
        ("proxy.enabled=false",),
        ("proxy.enabled=false", "containerd.runAsRoot=true"),
        ("containerd.runAsRoot=true", "persistence.type=emptyDir"),
        (),
    ],
    ids=lambda flags: "-".join(flags) or "default",
)
def test_bridge_pod_publishes_after_upgrade_with_other_values(
    node: Node, stream_reader: StreamReader, flags: tuple[str, ...]
) -> None:
    name = f"upgrade-{secrets.token_hex(3)}"
    shared_memory = f"{name}-shm"
    node.apply(pod(shared_memory, container("main", "head -c 20971520 /dev/zero > /dev/shm/data; sleep 1000")))
    stream_reader.wait(lambda all_: transitions(all_)[shared_memory, "main", "started"], "the start of a pod")
    install(node, "upgrade", stream_reader.url, *(f"--set={flag}" for flag in flags))
    node.apply(pod(name, container("main", "exit 6")))
    stream_reader.wait(lambda all_: transitions(all_)[name, "main", "exited"], "the exit of a pod")
    has_proxy = "proxy.enabled=false" not in flags
    log = node.kubectl("logs", bridge_pod(node)["metadata"]["name"], "--container=bridge", f"--namespace={NAMESPACE}")
    assert '"http_listening"' in log.stdout
    assert not has_proxy or '"containerd_unavailable"' not in log.stdout  # the proxy listens before the bridge starts
    sandbox = sandbox_of(node, shared_memory)
    assert sandbox in mounts(node, "proxy" if has_proxy else "bridge")
    node.kubectl("delete", "pod", shared_memory, "--wait=true")
    # What containerd has unmounted would otherwise stay in memory until the container of the bridge's pod ends.
    eventually(lambda: sandbox not in mounts(node, "proxy" if has_proxy else "bridge"), "the unmount", within=30)


def sandbox_of(node: Node, name: str) -> str:
    """Return the id of the sandbox of a pod."""
    labels = f'labels."io.cri-containerd.kind"==sandbox,labels."io.kubernetes.pod.name"=={name}'
    return node.ctr("containers", "ls", "-q", labels, namespace="k8s.io").stdout.strip()


def mounts(node: Node, part: str) -> str:
    """Return the mounts that a container of the bridge's pod sees."""
    return Path(f"/proc/{process_id(node, part)}/mountinfo").read_text()


def process_id(node: Node, part: str) -> int:
    """Return the process id of a container of the bridge's pod."""
    status = bridge_pod(node)["status"]
    statuses = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
    (id_,) = [each["containerID"].removeprefix("containerd://") for each in statuses if each["name"] == part]
    tasks = node.ctr("tasks", "ls", namespace="k8s.io").stdout.splitlines()
    (pid,) = [line.split()[1] for line in tasks if line.startswith(id_)]
    return int(pid)


def test_node_shutdown_publishes_exits_of_pods(node: Node, stream_reader: StreamReader) -> None:
    slow = container("main", "trap 'sleep 5; exit 8' TERM; sleep 1000 & wait")
    node.apply(pod("last", slow, terminationGracePeriodSeconds=30))
    stream_reader.wait(lambda all_: transitions(all_)["last", "main", "started"], "the start of a pod")
    node.shut_down()
    assert not running_tasks(node)
    try:
        # The kubelet starts no pods now: the bridge that ran until the end has published this.
        stream_reader.wait(lambda all_: transitions(all_)["last", "main", "exited"], "the exit of a pod", timeout=15)
    finally:
        node.resume_pods()
    (record,) = [each for each in stream_reader.of_pod("last") if each["type"] == "exited"]
    assert (record["origin"], record["exit"]["status"]) == ("live", 8)
    eventually(
        lambda: any(map(is_ready, bridge_pods(node))), "the bridge to run again", within=120
    )  # its pods are Failed, and replaced


@pytest.mark.usefixtures("stream_reader")
def test_bridge_pod_never_calls_kubernetes_api(node: Node) -> None:
    entries = [json.loads(line) for line in node.audit.read_text().splitlines()]
    assert entries
    account = f"system:serviceaccount:{NAMESPACE}:whalebridge"
    assert not [entry for entry in entries if entry["user"]["username"] == account]
    pods = POD_CIDR.rsplit(".", 2)[0]
    assert not [entry for entry in entries if any(ip.startswith(pods) for ip in entry["sourceIPs"])]


@pytest.mark.usefixtures("stream_reader")
def test_chart_uninstall_leaves_nothing_behind(node: Node) -> None:
    node.helm("uninstall", "whalebridge", f"--namespace={NAMESPACE}", "--wait", "--timeout=60s")
    kinds = node.kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").stdout.split()
    kinds = [kind for kind in kinds if not kind.startswith(("events", "configmaps", "serviceaccounts"))]

    def remaining() -> str:
        return node.kubectl("get", ",".join(kinds), f"--namespace={NAMESPACE}", "--output=name").stdout

    eventually(lambda: not remaining(), "the removal of all objects", within=60)
    maps = node.kubectl("get", "configmaps,serviceaccounts", f"--namespace={NAMESPACE}", "--output=name").stdout.split()
    assert set(maps) == {
        "configmap/kube-root-ca.crt",
        "serviceaccount/default",
    }  # Kubernetes creates these in every namespace


def test_documented_chart_commands_work(node: Node, stream_reader: StreamReader) -> None:
    node.ctr("images", "tag", f"docker.io/library/{IMAGE}", f"registry.example.net/{IMAGE}", namespace="k8s.io")
    commands = documented_commands(stream_reader.url.removeprefix("nats://"))
    assert len(commands) >= 9
    for program, *arguments in commands:
        call = node.helm if program == "helm" else node.kubectl
        call(*arguments, timeout=150)
        if arguments[0] in ("install", "upgrade"):
            node.kubectl("rollout", "status", "daemonset/whalebridge", "--namespace=whalebridge", timeout=150)


def documented_commands(broker: str) -> list[list[str]]:
    """Return the commands of docs/kubernetes.md, with the address of the test broker."""
    text = (DOCS / "kubernetes.md").read_text().replace("\\\n", " ")
    lines = [line[2:] for line in text.splitlines() if line.startswith(("$ helm ", "$ kubectl "))]
    return [
        shlex.split(line.replace("nats.nats:4222", broker).replace("deploy/helm", str(CHART.parent))) for line in lines
    ]
