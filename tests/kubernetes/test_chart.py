"""The rendered chart, for all distributions, all examples and invalid values."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from bridge import __version__
from tests.kubernetes.rendering import (
    CHART,
    DISTRIBUTIONS,
    EXAMPLES,
    Manifest,
    containers,
    find_one,
    helm,
    pod,
    render,
    settings,
)
from tests.testbed.process import CommandError

VERSIONS = ("1.25", "1.34")
NATS: dict[str, Any] = {"type": "nats", "servers": ["a"], "subject_prefix": "s"}
FOREIGN = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}  # of the Prometheus operator


@pytest.fixture(autouse=True)
def _helm(require: Callable[..., None]) -> None:
    require("helm")


def rendered_variants() -> Iterator[Any]:
    for distribution in DISTRIBUTIONS:
        for proxy in (True, False):
            flags = [f"--set=distribution={distribution}", f"--set=proxy.enabled={str(proxy).lower()}"]
            yield pytest.param(flags, id=f"{distribution}-{'proxy' if proxy else 'direct'}")
    for example in EXAMPLES:
        yield pytest.param([f"--values={example}"], id=example.stem)
    yield pytest.param(["--set=containerd.runAsRoot=true"], id="root")
    yield pytest.param(["--set=containerd.runAsRoot=true", "--set=proxy.enabled=false"], id="root-direct")


@pytest.mark.parametrize("flags", list(rendered_variants()))
@pytest.mark.parametrize("version", VERSIONS)
def test_chart_objects_are_valid_for_kubernetes(flags: list[str], version: str) -> None:
    for manifest in render(flags=flags, kubernetes=version):
        if manifest["kind"] not in FOREIGN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("flags", list(rendered_variants()))
def test_chart_pods_are_unprivileged_and_have_no_token(flags: list[str]) -> None:
    manifests = render(flags=flags)
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {each["kind"] for each in manifests}
    spec = pod(manifests)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for name, container in containers(manifests).items():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "privileged" not in context
        assert context["capabilities"].get("add", []) == (["CHOWN"] if name == "state" else [])
        assert container["resources"]["limits"]["memory"]
        assert "hostPort" not in str(container.get("ports"))
    mounted = {volume["name"]: volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume}
    assert set(mounted) <= {"containerd", "state"}
    assert all(path["type"] in ("Directory", "DirectoryOrCreate") for path in mounted.values())


@pytest.mark.parametrize(("distribution", "socket"), list(DISTRIBUTIONS.items()))
def test_chart_mounts_socket_directory_of_distribution(distribution: str, socket: str) -> None:
    for proxy in (True, False):
        manifests = render({"distribution": distribution, "proxy.enabled": proxy})
        assert settings(manifests)["containerd"]["address"] == socket
        volumes = {each["name"]: each for each in pod(manifests)["volumes"]}
        assert volumes["containerd"]["hostPath"]["path"] == str(Path(socket).parent)
        assert mounts(manifests, "bridge")["proxy" if proxy else "containerd"] == str(Path(socket).parent)


def test_chart_mounts_containerd_socket_only_in_proxy() -> None:
    manifests = render()
    assert "containerd" not in mounts(manifests, "bridge")
    assert "containerd" not in mounts(manifests, "state")
    assert mounts(manifests, "proxy") == {"containerd": "/run/containerd", "proxy": "/run/whalebridge"}
    assert "env" not in containers(manifests)["proxy"]
    assert containers(manifests)["bridge"]["securityContext"]["runAsGroup"] == 65532
    assert containers(manifests)["proxy"]["securityContext"]["runAsGroup"] == 0


def test_chart_passes_credentials_only_to_bridge() -> None:
    manifests = render({"existingSecrets": {"files": ["kafka", "ca"], "env": ["more"]}})
    mounted = mounts(manifests, "bridge")
    assert (mounted["secret-0"], mounted["secret-1"]) == (
        "/etc/whalebridge/secrets/kafka",
        "/etc/whalebridge/secrets/ca",
    )
    assert containers(manifests)["bridge"]["envFrom"] == [{"secretRef": {"name": "more"}}]
    for name in ("proxy", "state"):
        assert not any(each.startswith("secret") for each in mounts(manifests, name))
        assert "envFrom" not in containers(manifests)[name]


def test_chart_configures_no_sinks_by_default() -> None:
    assert "sinks" not in settings(render())


def test_chart_replaces_pods_when_config_changes() -> None:
    def checksum(**config: Any) -> str:
        template = find_one(render({"config": config}), "DaemonSet")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(log={"level": "debug"}) != checksum()
    assert checksum(log={"level": "debug"}) == checksum(log={"level": "debug"})


def test_chart_network_policy_allows_dns_and_broker_ports() -> None:
    sinks = {
        "kafka": {"type": "kafka", "bootstrap_servers": ["a.example.net:9093", "b.example.net"], "topic": "t"},
        "nats": {"type": "nats", "servers": ["[2001:db8::1]:4333"], "subject_prefix": "s"},
        "url": "nats://c.example.net:4555/s",
        "stdout": {"type": "stdout"},
    }
    manifests = render({"config": {"sinks": sinks}, "networkPolicy.brokerPorts": [9999]})
    assert ports(manifests) == [{53}, {4333, 4555, 9092, 9093, 9999}]
    assert ports(render()) == [{53}]


def ports(manifests: list[Manifest]) -> list[set[int]]:
    egress = find_one(manifests, "NetworkPolicy")["spec"]["egress"]
    return [{port["port"] for port in rule["ports"]} for rule in egress]


def mounts(manifests: list[Manifest], container: str) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in containers(manifests)[container]["volumeMounts"]}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("replicas", 2, "replicas"),
        ("distribution", "minikube", "distribution"),
        ("proxy", {"enable": True}, "enable"),
        ("proxy.enabled", "yes", "enabled"),
        ("persistence.type", "tmpfs", "type"),
        ("image.tag", 1.0, "tag"),
        ("image.digest", "sha256:beef", "digest"),
        ("http.port", 70000, "port"),
        ("resources", {"limit": {}}, "limit"),
        ("tolerations", [{"operators": "Exists"}], "operators"),
        ("updateStrategy", {"maxSurge": 1}, "maxSurge"),
        ("livenessProbe", {"httpGet": {}}, "httpGet"),
        ("networkPolicy", {"brokers": [{"ipblock": {}}]}, "ipblock"),
        ("extraEnv", [{"nam": "x"}], "nam"),
        ("config", {"sink": {}}, "sink"),
        ("config", {"log": {"levels": "debug"}}, "levels"),
        ("config", {"log": {"level": "loud"}}, "level"),
        ("config", {"snapshot": {"interval": "1 hour"}}, "interval"),
        ("config", {"sinks": {"main": {"type": "kafak"}}}, "type"),
        ("config", {"sinks": {"main": {"type": "kafka", "bootstrap_servers": ["a"]}}}, "topic"),
        ("config", {"sinks": {"main": NATS | {"stream": {"nam": 1}}}}, "nam"),
        ("config", {"sinks": {"main": NATS | {"auth": {"token": "t"}}}}, "token"),
        ("config", {"sinks": {"Main": NATS}}, "Main"),
        ("config", {"sinks": [NATS]}, "sinks"),
        ("config", {"http": {"listen": ":1"}}, "listen"),
        ("config", {"containerd": {"address": "/x"}}, "containerd"),
        ("config", {"state_dir": "/x"}, "state_dir"),
        ("config", {"host": "x"}, "host"),
        ("existingSecrets.files", "one", "files"),
    ],
)
def test_chart_names_invalid_value(name: str, value: Any, expected: str) -> None:
    with pytest.raises(CommandError, match=expected):
        render({name: value})


def test_chart_schema_forbids_unknown_keys_at_every_level() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    free = {
        "global",
        "affinity",
        "podSelector",
        "namespaceSelector",
        "valueFrom",
    }  # free-form values of Helm, and of Kubernetes

    def open_levels(level: Any, path: str) -> Iterator[str]:
        if isinstance(level, dict):
            if level.get("properties") and "/if" not in path and level.get("additionalProperties") is not False:
                yield path
            for name, each in level.items():
                if name not in free:
                    yield from open_levels(each, f"{path}/{name}")
        elif isinstance(level, list):
            for number, each in enumerate(level):
                yield from open_levels(each, f"{path}/{number}")

    # The definition of each sink type lists its properties.
    accepted = "/definitions/config/properties/sinks/additionalProperties/else"
    assert [path for path in open_levels(schema, "") if path != accepted] == []


def test_chart_accepts_any_global_value() -> None:
    assert render({"global": {"imageRegistry": "x"}})


def test_chart_passes_helm_lint() -> None:
    for example in EXAMPLES:
        assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), f"--values={example}")


def test_chart_app_version_matches_package(tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    assert f"appVersion: {__version__}" in helm("show", "chart", str(tmp_path / f"whalebridge-{__version__}.tgz"))
