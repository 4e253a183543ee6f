"""The rendered chart, for all distributions, all examples and invalid values."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge import __version__
from bridge.settings_reload import RELOADABLE
from config.fields import MAX_ATTRIBUTES
from tests.kubernetes.rendering import (
    CHART,
    DISTRIBUTIONS,
    EXAMPLES,
    FOREIGN,
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
TEMPLATE_FLAGS = ("--kube-version=1.34", "--set=image.registry=registry.example.net")


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
        assert settings(manifests).containerd.address == socket
        volumes = {each["name"]: each for each in pod(manifests)["volumes"]}
        assert volumes["containerd"]["hostPath"]["path"] == str(Path(socket).parent)
        assert mounts(manifests, "bridge")["proxy" if proxy else "containerd"] == str(Path(socket).parent)


@pytest.mark.parametrize("distribution", ["cri-o", "docker", "fargate", "gke-autopilot", "openshift"])
def test_chart_rejects_distribution_without_containerd(distribution: str) -> None:
    for values in ({}, {"containerd.socket": "/run/other/containerd.sock"}):
        with pytest.raises(
            CommandError, match=rf"distribution: {distribution} is not supported: .+; (use|change) .+\."
        ):
            render({"distribution": distribution, **values})


def test_chart_names_supported_distributions() -> None:
    with pytest.raises(CommandError) as caught:
        render({"distribution": "minikube"})
    assert f"minikube is unknown; use one of {', '.join(sorted(DISTRIBUTIONS))}, and set" in caught.value.result.stderr


def test_chart_mounts_containerd_socket_only_in_proxy() -> None:
    manifests = render()
    assert "containerd" not in mounts(manifests, "bridge")
    assert "containerd" not in mounts(manifests, "state")
    assert mounts(manifests, "proxy") == {"containerd": "/run/containerd", "proxy": "/run/whalebridge"}
    assert "env" not in containers(manifests)["proxy"]
    assert containers(manifests)["bridge"]["securityContext"]["runAsGroup"] == 65532
    assert containers(manifests)["proxy"]["securityContext"]["runAsGroup"] == 0


def test_chart_passes_credentials_only_to_bridge() -> None:
    secrets = {"files": ["kafka", "ca"], "env": ["more"]}
    manifests = render({"existingSecrets": secrets, "config": {"sinks": {"main": NATS}}})
    mounted = mounts(manifests, "bridge")
    assert (mounted["secret-0"], mounted["secret-1"]) == (
        "/etc/whalebridge/secrets/kafka",
        "/etc/whalebridge/secrets/ca",
    )
    assert containers(manifests)["bridge"]["envFrom"] == [{"secretRef": {"name": "more"}}]
    for name in ("proxy", "state"):
        assert not any(each.startswith("secret") for each in mounts(manifests, name))
        assert "envFrom" not in containers(manifests)[name]


def test_chart_adds_sources_of_environment_to_bridge() -> None:
    more = [{"configMapRef": {"name": "{{ .Release.Name }}-more"}, "prefix": "A_"}, {"secretRef": {"name": "1e3"}}]
    values = {"existingSecrets.env": ["first"], "extraEnvFrom": more, "networkPolicy.brokerPorts": [4222]}
    by_name = containers(render(values))
    rendered = [{"configMapRef": {"name": "whalebridge-more"}, "prefix": "A_"}, {"secretRef": {"name": "1e3"}}]
    assert by_name["bridge"]["envFrom"] == [{"secretRef": {"name": "first"}}, *rendered]
    assert not any("envFrom" in container for name, container in by_name.items() if name != "bridge")
    with pytest.raises(CommandError, match=r"set networkPolicy\.brokerPorts"):
        render({"extraEnvFrom": more})


RETIRE: dict[str, Any] = {
    "retire": {"enabled": True, "schedule": "@hourly", "staleFor": "6h", "sink": "main"},
    "config": {"sinks": {"main": NATS}},
}


def retire_pod(values: dict[str, Any]) -> Manifest:
    spec = find_one(render(RETIRE | values), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return dict(spec)


def test_chart_retires_nodes_only_if_enabled() -> None:
    assert not [each for each in render() if each["kind"] == "CronJob"]
    spec = find_one(render(RETIRE), "CronJob")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("@hourly", "Forbid")
    arguments = retire_pod({})["containers"][0]["args"]
    assert arguments[:5] == ["retire", "--stale-for", "6h", "--sink", "main"]
    assert arguments[5:] == ["--by", "CronJob default/whalebridge-retire", "--config", "/etc/whalebridge/config.yaml"]


def test_chart_retires_with_settings_and_secrets_of_bridge() -> None:
    values = {
        "existingSecrets": {"files": ["kafka"], "env": ["more"]},
        "extraEnv": [{"name": "WHALEBRIDGE_SINKS__MAIN__TLS__CA_FILE", "value": "/ca/ca.pem"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    spec, bridge = retire_pod(values), containers(render(RETIRE | values))["bridge"]
    (container,) = spec["containers"]
    assert {name: container[name] for name in ("image", "env", "envFrom")} == {
        name: bridge[name] for name in ("image", "env", "envFrom")
    }
    assert {each["name"]: each["mountPath"] for each in container["volumeMounts"]} == {
        "config": "/etc/whalebridge",
        "secret-0": "/etc/whalebridge/secrets/kafka",
        "ca": "/ca",
    }
    assert {each["name"] for each in spec["volumes"]} == {"config", "secret-0", "ca"}


@pytest.mark.parametrize("proxy", [True, False])
def test_chart_pod_that_retires_has_no_access_to_node(proxy: bool) -> None:
    node = {"name": "node", "hostPath": {"path": "/"}}
    mount = {"name": "node", "mountPath": "/node"}
    spec = retire_pod(
        {
            "proxy.enabled": proxy,
            "containerd.runAsRoot": True,
            "extraVolumes": [node],
            "extraVolumeMounts": [mount],
            "extraPodSpec": {"hostNetwork": True},
        }
    )
    assert "hostPath" not in str(spec)
    assert "hostNetwork" not in spec
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
    }


def test_chart_policy_of_pod_that_retires_allows_brokers_only() -> None:
    manifests = render(RETIRE)
    bridge, retire = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    template = find_one(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    assert retire["podSelector"]["matchLabels"] == template["metadata"]["labels"]
    assert retire["podSelector"] != bridge["podSelector"]
    assert retire["egress"] == bridge["egress"]
    assert (retire["policyTypes"], "ingress" in retire) == (["Ingress", "Egress"], False)


@pytest.mark.parametrize("length", [1, 45, 53])
def test_chart_retire_name_leaves_room_for_job_suffix(length: int) -> None:
    name = find_one(render(RETIRE, release="x" * length), "CronJob")["metadata"]["name"]
    assert len(name) <= 52
    assert name.endswith("-retire")


def test_chart_configures_no_sinks_by_default() -> None:
    assert "sinks" not in settings(render()).model_fields_set


CHANGES: dict[str, Any] = {  # a change of each setting that config can have
    "namespaces": {"include": ["a"]},
    "containers": {"names": {"include": ["a"]}},
    "labels": {"include": ["a"]},
    "sinks": {"main": NATS | {"servers": ["b"]}},
    "snapshot": {"interval": "1h"},
    "heartbeat": {"interval": "10s"},
    "log": {"level": "debug"},
    "outbox": {"max_records": 1000},
    "attributes": {"region": "eu-1"},
}


def pod_template(**config: Any) -> Manifest:
    values = {"config": {"sinks": {"main": NATS}} | config}
    return dict(find_one(render(values), "DaemonSet")["spec"]["template"])


@pytest.mark.parametrize("name", CHANGES)
def test_chart_replaces_pods_only_if_setting_needs_restart(name: str) -> None:
    assert (pod_template(**{name: CHANGES[name]}) != pod_template()) == (name not in RELOADABLE)


@pytest.mark.parametrize(
    "change", [{"log": {"format": "json"}}, {"sinks": {"main": NATS, "more": NATS}}, {"sinks": {"other": NATS}}]
)
def test_chart_replaces_pods_if_part_of_setting_needs_restart(change: dict[str, Any]) -> None:
    assert pod_template(**change) != pod_template()


def test_chart_settings_are_all_reloadable_or_replace_pods() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["definitions"]["config"]["properties"]) == set(CHANGES)
    assert set(CHANGES) >= set(RELOADABLE)


def test_chart_sets_cluster_name_as_attribute() -> None:
    config = {"sinks": {"main": NATS}, "attributes": {"region": "eu-1"}}
    values: dict[str, Any] = {"config": config, "clusterName": 'prod: "1" #'}
    assert settings(render(values)).attributes == {"region": "eu-1", "cluster": 'prod: "1" #'}
    values = {"existingConfigMap": "own", "networkPolicy.brokerPorts": [4222], "clusterName": "prod-1"}
    assert settings(render(values)).attributes == {"cluster": "prod-1"}
    assert settings(render()).attributes == {}
    with pytest.raises(CommandError, match=r"clusterName or config.attributes.cluster, not both"):
        render({"config": {"attributes": {"cluster": "a"}}, "clusterName": "b"})


def test_chart_counts_cluster_name_as_attribute() -> None:
    attributes = {f"name{number}": "value" for number in range(MAX_ATTRIBUTES)}
    config: dict[str, Any] = {"sinks": {"main": NATS}, "attributes": attributes}
    assert settings(render({"config": config})).attributes == attributes
    with pytest.raises(CommandError, match=r"Remove one of config.attributes: there can be 16 attributes"):
        render({"config": config, "clusterName": "prod-1"})
    attributes.pop("name0")
    assert len(settings(render({"config": config, "clusterName": "prod-1"})).attributes) == MAX_ATTRIBUTES


def test_chart_mounts_configuration_as_directory() -> None:
    manifests = render({"existingSecrets.files": ["kafka"], "config": {"sinks": {"main": NATS}}})
    (mount,) = [each for each in containers(manifests)["bridge"]["volumeMounts"] if each["name"] == "config"]
    assert mount == {"name": "config", "mountPath": "/etc/whalebridge", "readOnly": True}
    assert settings(manifests).reload_on_change


def test_chart_uses_existing_config_map() -> None:
    values = {"existingConfigMap": "own", "networkPolicy.brokerPorts": [4222], "persistence.type": "emptyDir"}
    manifests = render(values)
    assert "ConfigMap" not in {each["kind"] for each in manifests}
    volumes = {each["name"]: each for each in pod(manifests)["volumes"]}
    assert volumes["config"]["configMap"] == {"name": "own"}
    assert volumes["state"]["emptyDir"] == {}  # the limit of the outbox is not known
    assert "ephemeral-storage" not in str(pod(manifests))
    loaded = settings(manifests)
    assert (loaded.containerd.address, loaded.http.listen) == ("/run/containerd/containerd.sock", "*:9469")
    assert (loaded.state_dir, loaded.host, loaded.http.containers) == ("/var/lib/whalebridge", "node", False)
    with pytest.raises(CommandError, match=r"config would have no effect.*existingConfigMap"):
        render(values | {"config": {"log": {"level": "debug"}}})


def test_chart_network_policy_allows_dns_and_broker_ports() -> None:
    sinks = {
        "kafka": {"type": "kafka", "bootstrap_servers": ["a.example.net:9093", "b.example.net"], "topic": "t"},
        "nats": {"type": "nats", "servers": ["[2001:db8::1]:4333"], "subject_prefix": "s"},
        "url": "nats://c.example.net:4555/s",
        "http": {"type": "http", "url": "http://d.example.net?key=a:1"},
        "https": "https://[2001:db8::1]/path:2",
        "http-port": "http://e.example.net:8080/path",
        "uppercase": "HTTP://f.example.net:8081",
        "leading-zero": "Nats://g.example.net:04666/s",
        "stdout": {"type": "stdout"},
    }
    manifests = render({"config": {"sinks": sinks}, "networkPolicy.brokerPorts": [9999]})
    assert ports(manifests) == [{53, 1053, 8053}, {80, 443, 4333, 4555, 4666, 8080, 8081, 9092, 9093, 9999}]
    assert ports(render()) == [{53, 1053, 8053}]


def ports(manifests: list[Manifest]) -> list[set[int]]:
    egress = find_one(manifests, "NetworkPolicy")["spec"]["egress"]
    return [{port["port"] for port in rule["ports"]} for rule in egress]


CILIUM: dict[str, Any] = {
    "networkPolicy": {"flavor": "cilium"},
    "config": {"sinks": {"nats": "nats://b.example.net:4333,192.0.2.1/s", "other": "nats://[2001:db8::1]/s"}},
}


@pytest.mark.parametrize(
    ("url", "name", "port"),
    [
        ("https://c.example.net/path", "c.example.net", "443"),
        ("HTTP://C.example.net?x=y:1", "c.example.net", "80"),
        ("https://c.example.net:/path", "c.example.net", "443"),
        ("https://c.example.net:08443/path", "c.example.net", "8443"),
    ],
)
def test_chart_cilium_policy_allows_http_receiver(url: str, name: str, port: str) -> None:
    manifests = render(CILIUM | {"config": {"sinks": {"http": url}}})
    _, by_name = find_one(manifests, "CiliumNetworkPolicy")["spec"]["egress"]
    assert by_name["toFQDNs"] == [{"matchName": name}]
    assert by_name["toPorts"] == [{"ports": [{"port": port, "protocol": "TCP"}]}]


def test_chart_cilium_policy_allows_brokers_by_name() -> None:
    manifests = render(CILIUM | {"networkPolicy.brokerNames": ["*.b.example.net"], "networkPolicy.brokerPorts": [9094]})
    dns, by_name = find_one(manifests, "CiliumNetworkPolicy")["spec"]["egress"]
    (dns_ports,) = dns["toPorts"]
    assert {each["port"] for each in dns_ports["ports"]} == {"53", "1053", "8053"}
    assert dns_ports["rules"] == {"dns": [{"matchPattern": "*"}]}
    assert by_name["toFQDNs"] == [{"matchPattern": "*.b.example.net"}, {"matchName": "b.example.net"}]
    tcp = {"4222", "4333", "9094"}
    assert by_name["toPorts"] == [{"ports": [{"port": port, "protocol": "TCP"} for port in sorted(tcp)]}]
    # Rules for DNS here would take precedence over those above, and Cilium would not learn the addresses.
    (by_address,) = find_one(manifests, "NetworkPolicy")["spec"]["egress"]
    assert [each["ipBlock"]["cidr"] for each in by_address["to"]] == ["192.0.2.1/32", "2001:db8::1/128"]
    assert {str(each["port"]) for each in by_address["ports"]} == tcp


def test_chart_cilium_policy_admits_probes_of_kubelet() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]
    manifests = render(CILIUM | {"networkPolicy.ingressFrom": peers, "http.port": 9500})
    policy, cilium = (find_one(manifests, kind)["spec"] for kind in ("NetworkPolicy", "CiliumNetworkPolicy"))
    port = {"port": "9500", "protocol": "TCP"}
    assert cilium["ingress"] == [{"fromEntities": ["host"], "toPorts": [{"ports": [port]}]}]
    assert policy["ingress"] == [{"ports": [{"port": 9500, "protocol": "TCP"}], "from": peers}]
    labels = find_one(manifests, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"] == cilium["endpointSelector"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_chart_cilium_policies_cover_pod_that_retires() -> None:
    manifests = render(RETIRE | CILIUM)
    bridge, retire = [each["spec"] for each in manifests if each["kind"] == "CiliumNetworkPolicy"]
    template = find_one(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    assert retire["endpointSelector"]["matchLabels"] == template["metadata"]["labels"]
    assert (retire["egress"], "ingress" in retire) == (bridge["egress"], False)


def test_chart_cilium_policy_allows_brokers_in_cluster() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nats"}}}]
    values: dict[str, Any] = {"networkPolicy.flavor": "cilium", "config.sinks.main": "nats://nats.nats.svc:4222/s"}
    (rule,) = find_one(render(values | {"networkPolicy.brokers": peers}), "NetworkPolicy")["spec"]["egress"]
    assert rule == {"ports": [{"port": 4222, "protocol": "TCP"}], "to": peers}
    with pytest.raises(CommandError, match=r"pods, such as those of nats.nats.svc: set networkPolicy.brokers"):
        render(values)


def test_chart_rejects_cilium_policy_without_names_of_brokers() -> None:
    values = {"networkPolicy.flavor": "cilium", "networkPolicy.brokerPorts": [9092], "existingConfigMap": "own"}
    with pytest.raises(CommandError, match=r"DNS only: set networkPolicy\.brokerNames"):
        render(values)
    manifests = render(values | {"networkPolicy.brokerNames": ["a.example.net"]})
    assert "egress" not in find_one(manifests, "NetworkPolicy")["spec"]
    assert len(find_one(manifests, "CiliumNetworkPolicy")["spec"]["egress"]) == 2


def test_chart_cilium_policy_exists_only_on_request() -> None:
    disabled = {**CILIUM, "networkPolicy.enabled": False}
    for values in ({}, disabled):
        assert "CiliumNetworkPolicy" not in {each["kind"] for each in render(values)}


def mounts(manifests: list[Manifest], container: str) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in containers(manifests)[container]["volumeMounts"]}


@pytest.mark.parametrize("proxy", [True, False])
def test_chart_socket_mounts_follow_unmounts_and_are_read_only(proxy: bool) -> None:
    manifests = render({"proxy.enabled": proxy})
    mount = volume_mount(manifests, "proxy" if proxy else "bridge", "containerd")
    assert (mount["mountPropagation"], mount["readOnly"]) == ("HostToContainer", True)
    assert not proxy or volume_mount(manifests, "bridge", "proxy")["readOnly"] is True


def volume_mount(manifests: list[Manifest], container: str, volume: str) -> Manifest:
    (mount,) = [each for each in containers(manifests)[container]["volumeMounts"] if each["name"] == volume]
    return dict(mount)


def test_chart_bridge_has_five_minutes_to_start() -> None:
    probe = containers(render())["bridge"]["startupProbe"]
    assert probe["httpGet"] == {"path": "/livez", "port": "http"}
    assert probe["periodSeconds"] * probe["failureThreshold"] == 300


def test_chart_pods_outlast_workloads_at_node_shutdown() -> None:
    assert pod(render())["priorityClassName"] == "system-node-critical"


def test_chart_resource_quota_admits_the_priority_class() -> None:
    quota = find_one(render({"resourceQuota.enabled": True, "priorityClassName": "important"}), "ResourceQuota")
    (expression,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert expression == {"scopeName": "PriorityClass", "operator": "In", "values": ["important"]}
    assert "ResourceQuota" not in {each["kind"] for each in render()}


@pytest.mark.parametrize("proxy", [True, False])
def test_chart_pods_have_one_selinux_label(proxy: bool) -> None:
    manifests = render({"podSecurityContext.seLinuxOptions": {"type": "spc_t"}, "proxy.enabled": proxy})
    for spec in (pod(manifests), find_one(manifests, "Pod")["spec"]):
        assert spec["securityContext"]["seLinuxOptions"] == {"type": "spc_t", "level": "s0"}
        parts = (*spec.get("initContainers", ()), *spec["containers"])
        assert not any("seLinuxOptions" in each["securityContext"] for each in parts)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_chart_sets_selinux_options_only_on_request(distribution: str) -> None:
    assert "seLinuxOptions" not in str(render({"distribution": distribution}))


def test_chart_pods_avoid_nodes_without_containerd() -> None:
    keys = {"eks.amazonaws.com/compute-type": ["fargate"], "type": ["virtual-kubelet"]}
    excluded = [{"key": key, "operator": "NotIn", "values": values} for key, values in keys.items()]
    own = [{"key": "whales", "operator": "Exists"}]
    fields = [{"key": "metadata.name", "operator": "In", "values": ["a"]}]
    terms = [{"matchExpressions": own}, {"matchFields": fields}]
    required = {"nodeSelectorTerms": terms}
    preferred = [{"weight": 1, "preference": {"matchExpressions": own}}]
    name = "DuringSchedulingIgnoredDuringExecution"
    affinity = {"nodeAffinity": {f"required{name}": required, f"preferred{name}": preferred}, "podAntiAffinity": {}}
    expected = [{"matchExpressions": own + excluded}, {"matchFields": fields, "matchExpressions": excluded}]
    for value, merged in (({}, [{"matchExpressions": excluded}]), (affinity, expected)):
        manifests = render({"affinity": value})
        for spec in (pod(manifests), find_one(manifests, "Pod")["spec"]):
            node_affinity = spec["affinity"]["nodeAffinity"]
            assert node_affinity[f"required{name}"]["nodeSelectorTerms"] == merged
            assert node_affinity.get(f"preferred{name}") == (preferred if value else None)


def test_chart_listens_on_both_address_families() -> None:
    assert settings(render()).http.listen == "*:9469"


def test_chart_serves_containers_only_on_request() -> None:
    assert settings(render()).http.containers is False
    assert settings(render({"http.containers": True})).http.containers is True


def test_chart_version_alone_does_not_replace_pods(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "whalebridge")
    chart = tmp_path / "whalebridge" / "Chart.yaml"
    chart.write_text(chart.read_text().replace(f"\nversion: {__version__}\n", "\nversion: 99.0.0\n"))
    new = yaml.safe_load_all(helm("template", "whalebridge", str(chart.parent), *TEMPLATE_FLAGS))
    daemon_set = find_one([each for each in new if each], "DaemonSet")
    assert daemon_set["metadata"]["labels"]["helm.sh/chart"] == "whalebridge-99.0.0"
    assert daemon_set["spec"] == find_one(render(), "DaemonSet")["spec"]


@pytest.mark.parametrize("max_bytes", [1_048_576, 536_870_912, 2_147_483_648])
def test_chart_empty_dir_is_larger_than_outbox(max_bytes: int) -> None:
    values = {"persistence.type": "emptyDir", "config.outbox.max_bytes": max_bytes}
    manifests = render(values if max_bytes != 536_870_912 else {"persistence.type": "emptyDir"})
    (state,) = [each["emptyDir"] for each in pod(manifests)["volumes"] if each["name"] == "state"]
    size = int(state["sizeLimit"].removesuffix("Mi")) * 1024**2
    assert 1.1 * max_bytes + 48 * 1024**2 <= size <= 1.1 * max_bytes + 50 * 1024**2
    assert containers(manifests)["bridge"]["resources"]["requests"]["ephemeral-storage"] == state["sizeLimit"]
    own = render(values | {"resources": {"limits": {"ephemeral-storage": "4Gi"}}})
    assert "ephemeral-storage" not in containers(own)["bridge"]["resources"]["requests"]


TEMPLATE = "{{ .Release.Name }}-{{ .Values.user }}"


def test_chart_objects_have_namespace_and_common_labels() -> None:
    values = {"namespaceOverride": "harbor", "commonLabels": {"a": TEMPLATE}, "resourceQuota.enabled": True}
    monitors = {"prometheusRule.enabled": True, "podMonitor.enabled": True, "service.enabled": True}
    manifests = render(values | monitors | {"dashboard.enabled": True})
    assert len(manifests) == 10
    for metadata in (each["metadata"] for each in manifests):
        assert metadata["namespace"] == "harbor"
        assert metadata["labels"]["a"] == "whalebridge-65532"
    template = find_one(manifests, "DaemonSet")["spec"]["template"]
    assert template["metadata"]["labels"]["a"] == "whalebridge-65532"
    assert {each["metadata"]["namespace"] for each in render()} == {"default"}
    assert find_one(manifests, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["harbor"]}


def test_chart_monitoring_objects_can_be_in_other_namespaces() -> None:
    kinds = ("serviceMonitor", "prometheusRule", "dashboard")
    manifests = render({kind: {"enabled": True, "namespace": f"{kind.lower()}s"} for kind in kinds})
    names = {(each["kind"], each["metadata"]["namespace"]) for each in manifests}
    assert names > {
        ("ServiceMonitor", "servicemonitors"),
        ("PrometheusRule", "prometheusrules"),
        ("ConfigMap", "dashboards"),
        ("ConfigMap", "default"),
    }
    assert find_one(manifests, "ServiceMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["default"]}


def test_chart_renders_labels_annotations_and_variables_as_templates() -> None:
    texts = {"a": TEMPLATE, "b": "{{ 10 | toJson }}", "c": "'{{ .Release.Name }}\": \\'"}
    expected = {"a": "whalebridge-65532", "b": "10", "c": "'whalebridge\": \\'"}
    annotated = ("annotations", "podAnnotations", "service.annotations", "serviceAccount.annotations")
    values = dict.fromkeys((*annotated, "dashboard.annotations", "podLabels", "podMonitor.labels"), texts)
    enabled = {f"{name}.enabled": True for name in ("service", "dashboard", "podMonitor")}
    manifests = render({**values, **enabled, "extraEnv": [{"name": "A", "value": "{{ 10 }}"}]})
    daemon_set = find_one(manifests, "DaemonSet")
    pod_metadata = daemon_set["spec"]["template"]["metadata"]
    dashboard = find_one([each for each in manifests if "dashboard" in each["metadata"]["name"]], "ConfigMap")
    for rendered in (
        daemon_set["metadata"]["annotations"],
        pod_metadata["annotations"],
        pod_metadata["labels"],
        find_one(manifests, "Service")["metadata"]["annotations"],
        find_one(manifests, "ServiceAccount")["metadata"]["annotations"],
        find_one(manifests, "PodMonitor")["metadata"]["labels"],
        dashboard["metadata"]["annotations"],
    ):
        assert expected.items() <= rendered.items()
    assert {"name": "A", "value": "10"} in containers(manifests)["bridge"]["env"]


def test_chart_update_stops_at_pods_that_fail_early() -> None:
    spec = find_one(render(), "DaemonSet")["spec"]
    assert (spec["minReadySeconds"], spec["revisionHistoryLimit"]) == (10, 10)
    spec = find_one(render({"minReadySeconds": 0, "revisionHistoryLimit": 2}), "DaemonSet")["spec"]
    assert (spec["minReadySeconds"], spec["revisionHistoryLimit"]) == (0, 2)


def test_chart_pod_security_context_is_merged_over_defaults() -> None:
    context = {"fsGroup": 7, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "Unconfined"}}
    assert pod(render({"podSecurityContext": context}))["securityContext"] == context
    default = {"fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod(render())["securityContext"] == default


def test_chart_extra_pod_spec_is_merged_last() -> None:
    own = {"name": "own", "image": TEMPLATE}
    lifecycle = {"preStop": {"sleep": {"seconds": 2}}}
    host = {"name": "WHALEBRIDGE_HOST", "value": "{{ .Release.Name }}"}
    mount = {"name": "fast", "mountPath": "/var/lib/whalebridge"}
    probe = {
        "livenessProbe": {"periodSeconds": 99},
        "volumeMounts": [mount],
        "env": [host, {"name": "B", "value": "b"}],
    }
    extra = {
        "runtimeClassName": "runc",
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
        "securityContext": {"fsGroupChangePolicy": "Always"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "containers": [own, {"name": "bridge", "lifecycle": lifecycle, **probe}],
        "initContainers": [own, {"name": "proxy", "tty": True}],
        "volumes": [{"name": "state", "emptyDir": {}}, {"name": "fast", "hostPath": {"path": "/mnt"}}],
    }
    values = {"extraPodSpec": extra, "extraEnv": [{"name": "A", "value": "a"}, {"name": "B", "value": "a"}]}
    base, manifests = render(), render(values)
    spec = pod(manifests)
    assert spec["runtimeClassName"] == "runc"
    assert spec["dnsConfig"] == extra["dnsConfig"]
    assert spec["securityContext"] == {**pod(base)["securityContext"], "fsGroupChangePolicy": "Always"}
    assert spec["tolerations"] == extra["tolerations"]
    assert spec["volumes"] == [
        {"name": "state", "emptyDir": {}} if each["name"] == "state" else each for each in pod(base)["volumes"]
    ] + [{"name": "fast", "hostPath": {"path": "/mnt"}}]
    rendered = {**own, "image": "whalebridge-65532"}
    assert spec["initContainers"] == [
        containers(base)["state"],
        {**containers(base)["proxy"], "tty": True},
        rendered,
    ]
    bridge, added = spec["containers"]
    assert added == rendered
    before = containers(base)["bridge"]
    env = [{**host, "value": "whalebridge"}, {"name": "A", "value": "a"}, {"name": "B", "value": "b"}]
    assert [each for each in bridge["env"] if each not in before["env"]] == env
    assert sorted(each["name"] for each in bridge["env"]) == sorted([*(e["name"] for e in before["env"]), "A", "B"])
    assert bridge["livenessProbe"] == {**before["livenessProbe"], "periodSeconds": 99}
    assert bridge["lifecycle"] == lifecycle
    assert bridge["volumeMounts"] == [
        mount if each["mountPath"] == mount["mountPath"] else each for each in before["volumeMounts"]
    ]
    same = ("image", "args", "resources", "securityContext", "readinessProbe", "startupProbe", "ports")
    assert all(bridge[name] == before[name] for name in same)


def test_chart_without_extra_values_has_no_empty_fields() -> None:
    spec = pod(render())
    assert not [name for name, value in spec.items() if value in ([], {}, None)]
    assert not [name for name, value in containers(render())["bridge"].items() if value in ([], {}, None)]


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "registry.example.net/whalebridge:" + __version__),
        ({"image": {"registry": "r.example.net:5000/a", "tag": "2"}}, "r.example.net:5000/a/whalebridge:2"),
        ({"image": {"registry": "r", "repository": "b/c", "tag": "2", "digest": DIGEST}}, f"r/b/c@{DIGEST}"),
        ({"global": {"imageRegistry": "mirror"}}, f"mirror/whalebridge:{__version__}"),
        ({"image": {"registry": "", "repository": "r/whalebridge"}}, f"r/whalebridge:{__version__}"),
        ({"image": {"registry": "", "pullPolicy": "Never"}}, f"whalebridge:{__version__}"),
    ],
)
def test_chart_image_has_registry(values: dict[str, Any], image: str) -> None:
    manifests = render(values)
    for spec in (pod(manifests), find_one(manifests, "Pod")["spec"]):
        assert {each["image"] for each in (*spec.get("initContainers", ()), *spec["containers"])} == {image}


def test_chart_without_registry_fails_with_instruction() -> None:
    with pytest.raises(CommandError, match=r"image\.registry is not set: build the image, push it"):
        render({"image.registry": ""})


def test_chart_adds_global_pull_secrets() -> None:
    secrets = ["parent", {"name": "other"}, "own"]
    manifests = render({"global": {"imagePullSecrets": secrets}, "imagePullSecrets": ["own", "more"]})
    for spec in (pod(manifests), find_one(manifests, "Pod")["spec"]):
        assert [each["name"] for each in spec["imagePullSecrets"]] == ["parent", "other", "own", "more"]


@pytest.mark.parametrize("kind", ["podMonitor", "serviceMonitor"])
def test_chart_monitor_has_options_of_its_endpoint(kind: str) -> None:
    relabelings = [{"action": "labeldrop", "regex": "pod"}]
    options = {"interval": "30s", "scrapeTimeout": "10s", "honorLabels": True, "metricRelabelings": relabelings}
    for given, expected in ((options, options), ({}, {})):
        spec = find_one(render({kind: {"enabled": True, **given}}), kind[0].upper() + kind[1:])["spec"]
        (endpoint,) = spec["endpoints" if kind == "serviceMonitor" else "podMetricsEndpoints"]
        fixed = {name: endpoint.pop(name) for name in ("port", "path", "relabelings")}
        assert (fixed["port"], fixed["path"]) == ("http", "/metrics")
        assert [each["targetLabel"] for each in fixed["relabelings"]] == ["job", "instance"]
        assert endpoint == expected


@pytest.mark.parametrize(
    ("kind", "endpoints"), [("podMonitor", "podMetricsEndpoints"), ("serviceMonitor", "endpoints")]
)
def test_chart_monitor_spec_is_merged_last(kind: str, endpoints: str) -> None:
    fields = {"sampleLimit": 5_000_000, "attachMetadata": {"node": True}, "jobLabel": "{{ .Release.Name }}"}
    items: list[dict[str, Any]] = [{"port": "http", "path": "/other", "honorTimestamps": False}, {"port": "more"}]
    base, spec = (
        find_one(render({kind: {"enabled": True, "extraSpec": extra}}), kind[0].upper() + kind[1:])["spec"]
        for extra in ({}, {**fields, endpoints: items})
    )
    assert spec == base | fields | {
        "jobLabel": "whalebridge",
        endpoints: [{**base[endpoints][0], **items[0]}, items[1]],
    }


def rules_of(manifests: list[Manifest]) -> list[dict[str, Any]]:
    alerts, recorded = find_one(manifests, "PrometheusRule")["spec"]["groups"]
    assert recorded == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["groups"][1]
    rules: list[dict[str, Any]] = alerts["rules"]
    return rules


def test_chart_rules_can_be_disabled_and_added() -> None:
    page = "https://example.net/runbook"
    text = (CHART / "files" / "rules.yaml").read_text().replace("docs/operations.md", page)
    alerts = yaml.safe_load(text[text.index("groups:") :])["groups"][0]["rules"]
    own = {"record": "whales", "expr": "vector(1)", "labels": {"a": "{{ $value }}"}}
    values = {"disabledAlerts": [alerts[0]["alert"], alerts[2]["alert"]], "additionalRules": [own]}
    rules = rules_of(render({"prometheusRule": {"enabled": True, "runbookUrl": page, **values}}))
    assert rules == [alerts[1], *alerts[3:], own]
    for rule in rules[:-1]:
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"


def test_chart_alert_severities_can_be_changed() -> None:
    values = {"enabled": True, "severities": {"WhalebridgeDown": "info", "WhalebridgeSinkDown": "none"}}
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules_of(render({"prometheusRule": values}))}
    default = {rule["alert"]: rule["labels"]["severity"] for rule in rules_of(render({"prometheusRule.enabled": True}))}
    assert severities == default | {"WhalebridgeDown": "info", "WhalebridgeSinkDown": "none"}
    assert set(default.values()) == {"critical", "warning"}


def dashboard_of(manifests: list[Manifest]) -> dict[str, Any]:
    (text,) = [each["data"]["whalebridge.json"] for each in manifests if "whalebridge.json" in each.get("data", {})]
    dashboard: dict[str, Any] = json.loads(text)
    return dashboard


def test_chart_links_instructions_only_by_full_address(tmp_path: Path) -> None:
    enabled = {"prometheusRule.enabled": True, "dashboard.enabled": True}
    manifests = render(enabled)
    assert not [rule for rule in rules_of(manifests) if "runbook_url" in rule["annotations"]]
    source = json.loads((CHART / "files" / "dashboard.json").read_text())
    assert dashboard_of(manifests) == source | {"links": []}
    page = "https://example.net/runbook"
    manifests = render(enabled | {"prometheusRule.runbookUrl": page})
    assert dashboard_of(manifests) == source | {"links": [{**source["links"][0], "url": f"{page}#alerts"}]}
    released = tmp_path / "whalebridge"  # a release names its repository
    shutil.copytree(CHART, released)
    with (released / "Chart.yaml").open("a") as file:
        file.write("sources: [https://git.example.net/whalebridge]\n")
    text = helm("template", "whalebridge", str(released), *TEMPLATE_FLAGS, "--set=prometheusRule.enabled=true")
    address = f"https://git.example.net/whalebridge/blob/v{__version__}/docs/operations.md#whalebridgedown"
    assert f"runbook_url: {address}\n" in text


@pytest.mark.parametrize("url", ["docs/operations.md", "https://example.net/a b", 'https://example.net/"'])
def test_chart_rejects_runbook_without_full_address(url: str) -> None:
    with pytest.raises(CommandError, match="runbookUrl"):
        render({"prometheusRule": {"enabled": True, "runbookUrl": url}})


@pytest.mark.parametrize("values", [{"disabledAlerts": ["Whales"]}, {"severities": {"Whales": "info"}}])
def test_chart_rejects_unknown_alert(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(CommandError, match=rf"{name}: there is no alert Whales; the alerts are: WhalebridgeAb"):
        render({"prometheusRule": {"enabled": True, **values}})


LARGE = 1_000_660_000
FROM_FILE = {
    "user": LARGE,
    "containerd": {"group": LARGE + 1},
    "terminationGracePeriodSeconds": 1_000_000,
    "config": {"outbox": {"max_records": 10_000_000}},
    "startupProbe": {"failureThreshold": 1_000_000},
}


def test_chart_renders_large_numbers_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(FROM_FILE))  # unlike --set, Helm reads numbers in files as floats
    manifests = render(flags=[f"--values={file}"])
    parts = containers(manifests)
    assert parts["state"]["args"][-1] == parts["proxy"]["args"][-1] == str(LARGE)
    assert parts["proxy"]["securityContext"]["runAsGroup"] == LARGE + 1
    assert parts["bridge"]["securityContext"]["runAsUser"] == pod(manifests)["securityContext"]["fsGroup"] == LARGE
    assert settings(manifests).outbox.max_records == 10_000_000
    assert pod(manifests)["terminationGracePeriodSeconds"] == 1_000_000
    assert find_one(manifests, "Pod")["spec"]["containers"][0]["securityContext"]["runAsUser"] == LARGE
    text = helm("template", "whalebridge", str(CHART), *TEMPLATE_FLAGS, f"--values={file}")
    assert not re.search(r"\de\+\d", text)


HOSTILE = {  # values that YAML would read as something else than a string, and keys that the chart sets, too
    "serviceAccount.name": "0123",
    "priorityClassName": "1e3",
    "imagePullSecrets": ["1234", "true"],
    "existingSecrets": {"files": ["1234", "1e3"], "env": ["0x1"]},
    "persistence.path": "/var/lib/a: b #c",
    "containerd.socket": "/run/a b/c #d",
    "image.tag": "1.10",
    "podMonitor": {"enabled": True, "labels": {"app.kubernetes.io/name": "x", "a": "1e3"}},
    "prometheusRule": {"enabled": True, "labels": {"helm.sh/chart": "x"}},
    "dashboard": {"enabled": True, "labels": {"app.kubernetes.io/instance": "x"}, "annotations": {"a": "true"}},
    "service": {"enabled": True, "annotations": {"a": "1e3"}},
    "podLabels": {"app.kubernetes.io/name": "x", "a": "1e3"},
    "podAnnotations": {"checksum/config": "x", "kubectl.kubernetes.io/default-container": "proxy"},
    "resourceQuota.enabled": True,
    "config": {"sinks": {"main": NATS}},
}


@pytest.mark.parametrize("release", ["whalebridge", "123", "true", "1e3", "my.rel", "0x1"])
@pytest.mark.parametrize("version", VERSIONS)
def test_chart_quotes_values_and_repeats_no_keys(release: str, version: str) -> None:
    manifests = render(HOSTILE, release=release, kubernetes=version)
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)
        labels = manifest["metadata"]["labels"]
        assert all(isinstance(each, str) for each in (manifest["metadata"]["name"], *labels.values()))
        assert labels["app.kubernetes.io/instance"] == release
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", find_one(manifests, "Service")["metadata"]["name"])
    daemon_set = find_one(manifests, "DaemonSet")["spec"]
    metadata = daemon_set["template"]["metadata"]
    assert daemon_set["selector"]["matchLabels"].items() <= metadata["labels"].items()
    assert metadata["annotations"]["checksum/config"] != "x"
    assert metadata["annotations"]["kubectl.kubernetes.io/default-container"] == "proxy"


def test_chart_rejects_two_monitors_of_the_same_pods() -> None:
    with pytest.raises(CommandError, match=r"podMonitor or serviceMonitor, not both"):
        render({"podMonitor.enabled": True, "serviceMonitor.enabled": True})


@pytest.mark.parametrize(
    "values",
    [
        {"existingConfigMap": "own"},
        {"existingSecrets.env": ["broker"]},
        {"extraEnv": [{"name": "WHALEBRIDGE_SINKS__MAIN", "value": "nats://a:4222/s"}]},
    ],
    ids=["config-map", "secret", "extra-env"],
)
def test_chart_rejects_network_policy_without_ports_of_sinks(values: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match=r"set networkPolicy\.brokerPorts"):
        render(values)
    assert ports(render(values | {"networkPolicy.brokerPorts": [4222]}))[1] == {4222}
    assert render(values | {"networkPolicy.enabled": False})


@pytest.mark.parametrize("version", ["1.28", "1.29"])
def test_chart_proxy_starts_before_bridge_where_possible(version: str) -> None:
    spec = pod(render(kubernetes=version))
    names = [[each["name"] for each in spec[kind]] for kind in ("initContainers", "containers")]
    if version == "1.28":
        assert names == [["state"], ["bridge", "proxy"]]
        assert "restartPolicy" not in str(spec)
    else:
        assert names == [["state", "proxy"], ["bridge"]]
        proxy = spec["initContainers"][1]
        assert proxy["restartPolicy"] == "Always"
        assert proxy["startupProbe"]["exec"]["command"][-1] == proxy["args"][proxy["args"].index("--listen") + 1]


@pytest.mark.parametrize("name", yaml.safe_load((CHART / "values.yaml").read_text()))
def test_chart_names_value_that_older_chart_lacks(name: str) -> None:
    """With `helm upgrade --reuse-values`, the values of an older chart lack what a newer one has added."""
    required = json.loads((CHART / "values.schema.json").read_text())["required"]
    if name in required:
        with pytest.raises(CommandError, match=rf"missing property '{name}'|{name} is required"):
            render({name: None})
    else:
        for manifest in render({name: None}):
            kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("replicas", 2, "replicas"),
        ("distribution", "minikube", "distribution"),
        ("proxy", {"enable": True}, "enable"),
        ("proxy.enabled", "yes", "enabled"),
        ("persistence.type", "tmpfs", "type"),
        ("resourceQuota", {"enable": True}, "enable"),
        ("retire.staleFor", "1 day", "staleFor"),
        ("retire.schedule", "", "schedule"),
        ("startupProbe", {"httpGet": {}}, "httpGet"),
        ("fullnameOverride", "my.name", "fullnameOverride"),
        ("nameOverride", "0x1", "nameOverride"),
        ("image.tag", 1.0, "tag"),
        ("image.digest", "sha256:beef", "digest"),
        ("http.port", 70000, "port"),
        ("resources", {"limit": {}}, "limit"),
        ("tolerations", [{"operators": "Exists"}], "operators"),
        ("updateStrategy", {"maxSurge": 1}, "maxSurge"),
        ("livenessProbe", {"httpGet": {}}, "httpGet"),
        ("networkPolicy", {"brokers": [{"ipblock": {}}]}, "ipblock"),
        ("networkPolicy", {"flavor": "calico"}, "flavor"),
        ("networkPolicy", {"brokerNames": ["a b"]}, "brokerNames"),
        ("podMonitor", {"interval": "30s1m"}, "interval"),
        ("extraEnv", [{"nam": "x"}], "nam"),
        ("extraEnvFrom", [{"configMapRef": {"nam": "x"}}], "nam"),
        ("extraEnvFrom", [{"prefix": "A_"}], "extraEnvFrom"),
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
        ("config", {"http": {"listen": ":1"}}, "http"),
        ("config", {"reload_on_change": False}, "reload_on_change"),
        ("existingConfigMap", 5, "existingConfigMap"),
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
        "extraPodSpec",
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
