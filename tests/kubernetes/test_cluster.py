"""The chart on a real node: what happens to pods is told to NATS, once, whatever happens to the bridge meanwhile.

Truth is what Kubernetes' own status of the pods says.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections import Counter
from typing import Any

import pytest

from tests.eventually import eventually
from tests.kubernetes.objects import container, pod
from tests.kubernetes.rendering import CHART
from tests.kubernetes.told import Told, alive, gaps, pod_of, transitions
from tests.testbed.bridge_image import NAME as IMAGE
from tests.testbed.kubernetes import NAME, PODS, Node

pytestmark = pytest.mark.timeout(900)

SPACE = "whales"
DOCS = CHART.parents[2] / "docs"
PODS_AT_ONCE = 100


@pytest.fixture(scope="module")
def told(node: Node) -> Told:
    """The chart, installed, and what it tells."""
    url = node.start_nats()
    node.kubectl("create", "namespace", SPACE)
    node.kubectl("label", "namespace", SPACE, "pod-security.kubernetes.io/enforce=privileged")
    install(node, "install", url)
    return Told(url)


def install(node: Node, how: str, url: str, *flags: str) -> None:
    config = {"sinks": {"main": f"{url}/containers"}, "log": {"level": "debug"}}
    given = ["--set=image.pullPolicy=Never", f"--set-json=config={json.dumps(config)}", f"--namespace={SPACE}"]
    node.helm(how, "whalebridge", str(CHART), *given, *flags)
    # Helm's own --wait is content with what maxUnavailable leaves: on one node, nothing.
    node.kubectl("rollout", "status", "daemonset/whalebridge", f"--namespace={SPACE}", "--timeout=120s", timeout=150)


def bridges(node: Node) -> list[dict[str, Any]]:
    """The DaemonSet's pods: none or two for a moment, while one is replaced."""
    items = node.get("pods", f"--namespace={SPACE}", "--selector=app.kubernetes.io/name=whalebridge")["items"]
    return [each for each in items if each["metadata"].get("ownerReferences")]


def bridge(node: Node) -> dict[str, Any]:
    """The DaemonSet's pod."""
    (found,) = bridges(node)
    return found


def is_ready(item: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in item["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def finished(node: Node, name: str, *, phase: str) -> dict[str, Any]:
    eventually(lambda: node.get("pod", name)["status"]["phase"] == phase, f"{name} {phase}", within=90)
    return dict(node.get("pod", name))


def ends(item: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Kubernetes' word on the containers that have ended: container's id and exit code, by name."""
    status = item["status"]
    found = {}
    for each in (*status.get("initContainerStatuses", ()), *status["containerStatuses"]):
        ended = each["state"].get("terminated") or each.get("lastState", {}).get("terminated")
        if ended:
            found[each["name"]] = (ended["containerID"].removeprefix("containerd://"), ended["exitCode"])
    return found


def test_every_container_of_a_pod_is_told_with_its_pod_and_its_exit(node: Node, told: Told) -> None:
    first = container("first", "exit 0")
    two = [container("good", "sleep 1"), container("bad", "sleep 1; exit 3")]
    node.apply(pod("several", *two, initContainers=[first]))
    item = finished(node, "several", phase="Failed")
    expected = ends(item)
    assert {name: code for name, (_, code) in expected.items()} == {"first": 0, "good": 0, "bad": 3}
    wanted = {("several", name, kind): 1 for name in expected for kind in ("started", "exited")}
    told.wait(lambda all_: wanted.keys() <= transitions(all_).keys(), "all of the pod to be told")
    time.sleep(3)  # for what must not come: seconds are what a second exit would take
    records = told.of("several")
    assert transitions(records) == wanted
    for record in records:
        where = pod_of(record)
        id_, code = expected[where["container"]]
        assert record["container"]["id"] == id_
        assert (where["namespace"], where["uid"]) == ("default", item["metadata"]["uid"])
        assert where["labels"]["app"] == "several"
        assert record["host"] == NAME
        if record["type"] == "exited":
            assert record["exit"]["status"] == code


def test_a_crash_loop_is_told_life_by_life(node: Node, told: Told) -> None:
    node.apply(pod("crashing", container("main", "exit 7"), restart="Always"))

    def restarts() -> int:
        (status,) = node.get("pod", "crashing")["status"].get("containerStatuses") or [{"restartCount": 0}]
        return int(status["restartCount"])

    eventually(lambda: restarts() >= 2, "two restarts", within=90)
    node.kubectl("delete", "pod", "crashing", "--wait=true")
    told.wait(lambda all_: transitions(all_)["crashing", "main", "exited"] >= 3, "three ends to be told")
    records = told.of("crashing")
    counts = transitions(records)
    assert counts["crashing", "main", "started"] == counts["crashing", "main", "exited"]
    assert {record["exit"]["status"] for record in records if record["type"] == "exited"} == {7}
    lives = Counter((record["container"]["incarnation"], record["type"]) for record in records)
    assert set(lives.values()) == {1}


def test_who_is_killed_for_memory_is_told_so(node: Node, told: Told) -> None:
    node.apply(pod("greedy", container("main", "tail", "/dev/zero", memory="24Mi")))
    item = finished(node, "greedy", phase="Failed")
    assert item["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    told.wait(lambda all_: transitions(all_)["greedy", "main", "exited"], "the kill to be told")
    (record,) = [record for record in told.of("greedy") if record["type"] == "exited"]
    assert record["exit"]["status"] == 137
    # Where containerd's word on the end is overtaken by that on the deletion, the end is inferred, and its cause open.
    assert record["exit"]["oom"] is (True if record["origin"] == "live" else None)


@pytest.mark.usefixtures("told")
def test_helm_test_sees_an_event_flow(node: Node) -> None:
    said = node.helm("test", "whalebridge", f"--namespace={SPACE}").stdout
    assert "Phase:          Succeeded" in said


def test_many_pods_are_each_told_once(node: Node, told: Told) -> None:
    names = [f"many-{number}" for number in range(PODS_AT_ONCE)]
    node.apply(*(pod(name, container("main", "trap 'exit 5' TERM; sleep 1000 & wait")) for name in names))

    def phases() -> Counter[str]:
        items = [each for each in node.get("pods")["items"] if each["metadata"]["name"] in names]
        return Counter(each["status"]["phase"] for each in items)

    eventually(lambda: phases()["Running"] == len(names), "all pods to run", within=400)
    node.kubectl("delete", "pods", *names, "--wait=true", timeout=300)
    expected = {(name, "main", kind): 1 for name in names for kind in ("started", "exited")}
    told.wait(lambda all_: expected.keys() <= transitions(all_).keys(), "all of them to be told", timeout=60)
    time.sleep(3)
    records = told.all()
    counts = transitions(records)
    assert {key: count for key, count in counts.items() if key[0] in names} == expected
    statuses = Counter(
        record["exit"]["status"]
        for record in records
        if record["type"] == "exited" and pod_of(record).get("name") in names
    )
    assert set(statuses) <= {5, 137}  # who was still starting when it was told to end, is killed after a second
    assert not gaps(records)


def test_updates_and_deletions_of_the_bridge_lose_nothing(node: Node, told: Told) -> None:
    node.apply(pod("witness", container("main", "while true; do sleep 0.5; done"), restart="Always"))
    node.apply(pod("doomed", container("main", "sleep 1000")))
    told.wait(lambda all_: transitions(all_)["doomed", "main", "started"], "the start of a pod to be told")
    before = bridge(node)["metadata"]["uid"]
    node.kubectl("delete", "pod", bridge(node)["metadata"]["name"], f"--namespace={SPACE}", "--wait=false")
    node.kubectl("delete", "pod", "doomed", "--wait=true")
    node.apply(pod("meanwhile", container("main", "exit 4")))
    finished(node, "meanwhile", phase="Failed")
    eventually(
        lambda: [each["metadata"]["uid"] != before and is_ready(each) for each in bridges(node)] == [True],
        "another pod to be ready", within=90,
    )  # fmt: skip
    install(node, "upgrade", told.url, "--set=podAnnotations.example\\.net/again=yes")
    records = told.wait(
        lambda all_: transitions(all_)["doomed", "main", "exited"] and transitions(all_)["meanwhile", "main", "exited"],
        "what happened meanwhile to be told",
    )
    assert len({record["epoch"] for record in records}) >= 3
    assert not gaps(records)
    counts = transitions(records)
    for name in ("doomed", "meanwhile"):
        assert (counts[name, "main", "started"], counts[name, "main", "exited"]) == (1, 1)
    reasons = [record["snapshot"] for record in records if record["type"] == "snapshot_started"]
    assert all(frame["since"] is not None for frame in reasons if frame["previous"])

    def agrees() -> bool:
        return alive(told.all()) == running(node)

    eventually(agrees, "the fold of all records to be what runs", within=60)


def running(node: Node) -> set[str]:
    """containerd's own word: the tasks that run and are no sandboxes."""
    sandboxes = node.ctr("containers", "ls", "-q", 'labels."io.cri-containerd.kind"==sandbox', namespace="k8s.io")
    hidden = set(sandboxes.stdout.split())
    return {
        f"k8s.io/{id_}" for id_, status in node.tasks("k8s.io").items() if status == "RUNNING" and id_ not in hidden
    }


@pytest.mark.usefixtures("told")
def test_a_second_instance_waits_until_the_first_has_ended(node: Node) -> None:
    template = node.get("daemonset", "whalebridge", f"--namespace={SPACE}")["spec"]["template"]
    second = {"apiVersion": "v1", "kind": "Pod", "spec": {**template["spec"], "nodeName": NAME}}
    second["metadata"] = {"name": "second", "namespace": SPACE, "labels": {"app": "second"}}
    node.apply(second)

    def log() -> str:
        command = ["logs", "second", "--container=bridge", f"--namespace={SPACE}"]
        return node.kubectl(*command, check=False).stdout + node.kubectl(*command, "--previous", check=False).stdout

    eventually(lambda: "/var/lib/whalebridge" in log(), "the second instance to complain", within=60)
    assert not is_ready(node.get("pod", "second", f"--namespace={SPACE}"))
    assert is_ready(bridge(node))
    node.kubectl("delete", "pod", "second", f"--namespace={SPACE}", "--wait=true")


@pytest.mark.usefixtures("told")
def test_the_bridge_itself_runs_without_rights(node: Node) -> None:
    name = bridge(node)["metadata"]["name"]
    script = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    for part in ("bridge", "proxy"):
        command = ["exec", name, f"--container={part}", f"--namespace={SPACE}", "--", "/opt/whalebridge/bin/python"]
        assert node.kubectl(*command, "-Ic", script).stdout.split() == ["65532", "0000000000000000"]
        look = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))"
        assert node.kubectl(*command, "-Ic", look).stdout == "False\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("proxy.enabled=false",),
        ("proxy.enabled=false", "containerd.runAsRoot=true"),
        ("containerd.runAsRoot=true",),
        ("persistence.type=emptyDir",),
        (),
    ],
    ids=lambda flags: "-".join(flags) or "default",
)
def test_it_can_be_installed_in_other_ways_and_goes_on(node: Node, told: Told, flags: tuple[str, ...]) -> None:
    install(node, "upgrade", told.url, *(f"--set={flag}" for flag in flags))
    name = f"way-{secrets.token_hex(3)}"
    node.apply(pod(name, container("main", "exit 6")))
    told.wait(lambda all_: transitions(all_)[name, "main", "exited"], "a pod to be told")


@pytest.mark.usefixtures("told")
def test_kubernetes_api_is_never_asked(node: Node) -> None:
    entries = [json.loads(line) for line in node.audit.read_text().splitlines()]
    assert entries
    account = f"system:serviceaccount:{SPACE}:whalebridge"
    assert not [entry for entry in entries if entry["user"]["username"] == account]
    pods = PODS.rsplit(".", 2)[0]
    assert not [entry for entry in entries if any(ip.startswith(pods) for ip in entry["sourceIPs"])]


@pytest.mark.usefixtures("told")
def test_uninstall_leaves_nothing_in_the_cluster(node: Node) -> None:
    node.helm("uninstall", "whalebridge", f"--namespace={SPACE}", "--wait", "--timeout=60s")
    kinds = node.kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").stdout.split()
    kinds = [kind for kind in kinds if not kind.startswith(("events", "configmaps", "serviceaccounts"))]

    def left() -> str:
        return node.kubectl("get", ",".join(kinds), f"--namespace={SPACE}", "--output=name").stdout

    eventually(lambda: not left(), "all objects to be gone", within=60)
    maps = node.kubectl("get", "configmaps,serviceaccounts", f"--namespace={SPACE}", "--output=name").stdout.split()
    assert set(maps) == {"configmap/kube-root-ca.crt", "serviceaccount/default"}  # every namespace has these


def test_the_commands_of_the_docs_work(node: Node, told: Told) -> None:
    node.ctr("images", "tag", f"docker.io/library/{IMAGE}", f"registry.example.net/{IMAGE}", namespace="k8s.io")
    commands = documented(told.url.removeprefix("nats://"))
    assert len(commands) >= 9
    for program, *arguments in commands:
        call = node.helm if program == "helm" else node.kubectl
        call(*arguments, timeout=150)
        if arguments[0] in ("install", "upgrade"):
            node.kubectl("rollout", "status", "daemonset/whalebridge", "--namespace=whalebridge", timeout=150)


def documented(broker: str) -> list[list[str]]:
    """The commands of docs/kubernetes.md, with a broker that is there."""
    text = (DOCS / "kubernetes.md").read_text().replace("\\\n", " ")
    lines = [line[2:] for line in text.splitlines() if line.startswith(("$ helm ", "$ kubectl "))]
    return [
        shlex.split(line.replace("nats.nats:4222", broker).replace("deploy/helm", str(CHART.parent))) for line in lines
    ]
