"""Random values of the chart: valid ones, and invalid ones for each value, derived from the chart's schema."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.kubernetes.rendering import CHART, DISTRIBUTIONS

Schema = dict[str, Any]
SCHEMA: Schema = json.loads((CHART / "values.schema.json").read_text())

_NAMES = ("a", "whales-1", "1234", "true", "1e3", "0x1", "null")
_LABELS = ("", "a", "1e3", "true", "A.b_c-1", "{{ .Release.Name }}")
_TEXTS = (*_LABELS, "a: b #c", "'\"\\", "- x", "{}", "é ☃", "a\nb", "{{ .Values.user }}")
_TOLERATIONS = (
    {"operator": "Exists"},
    {"key": "a", "operator": "Equal", "value": "1e3", "effect": "NoExecute", "tolerationSeconds": 1_000_000},
)
_POD_SELECTOR = {"podSelector": {"matchLabels": {"app": "true"}}}
_PEERS: tuple[Any, ...] = (
    {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.0/25"]}},
    _POD_SELECTOR,
    {"namespaceSelector": {}},
)
_EXPRESSION = {"key": "a", "operator": "In", "values": ["1e3"]}
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_AFFINITIES = (
    {"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [_EXPRESSION]}]}}},
    {"podAntiAffinity": {_REQUIRED: [{"topologyKey": "a", "labelSelector": {"matchExpressions": [_EXPRESSION]}}]}},
)
_SINKS = (
    "nats://a.test:4222/s",
    "kafkas://192.0.2.1,b.test:9093/t",
    {"type": "nats", "servers": ["a.test", "[2001:db8::1]:4333"], "subject_prefix": "1e3"},
    {"type": "kafka", "bootstrap_servers": ["a.test:9092", "b.test"], "topic": "0123"},
    {"type": "http", "url": "https://a.test/b", "headers": {"X-Tenant": "0123"}},
    {"type": "stdout"},
)
_CONFIGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("sinks", tuple({"main": sink} for sink in _SINKS)),
    ("log", ({"level": "debug"}, {"format": "json"})),
    ("outbox", ({"max_bytes": 2_147_483_648, "max_records": 10_000_000},)),
    ("containers", ({"labels": {"include": ["a=1e3", "b"]}},)),
    ("snapshot", ({"interval": "1h"},)),
)
_POD_SPECS = (
    {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}, "terminationGracePeriodSeconds": 7},
    {"runtimeClassName": "runc", "tolerations": [], "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}]},
    {"containers": [{"name": "bridge", "env": [{"name": "A", "value": "{{ 1 }}"}]}, {"name": "b", "image": "b"}]},
    {"volumes": [{"name": "state", "emptyDir": {}}, {"name": "b", "configMap": {"name": "1e3"}}]},
)
_LIMITS = {
    "sampleLimit": 5_000_000,
    "labelLimit": 64,
    "attachMetadata": {"node": True},
    "jobLabel": "{{ .Release.Name }}",
}
_ENDPOINT = {"port": "http", "honorTimestamps": False, "relabelings": [{"targetLabel": "a", "replacement": "1e3"}]}

Choose = Callable[[random.Random], Any]


def _one(*choices: Any) -> Choose:
    return lambda rng: rng.choice(choices)


def _some(*choices: Any) -> Choose:
    return lambda rng: rng.sample(choices, rng.randint(0, len(choices)))


def _texts(values: tuple[str, ...]) -> Choose:
    keys = ("a", "example.net/B", "true", "1e3")
    return lambda rng: {key: rng.choice(values) for key in rng.sample(keys, rng.randint(0, 4))}


_CHOICES: dict[str, Choose] = {
    "distribution": _one(*DISTRIBUTIONS),
    "containerd.socket": _one("", "/run/a/b.sock", "/run/a b #c/1e3"),
    "config": lambda rng: {name: rng.choice(parts) for name, parts in _CONFIGS if rng.random() < 0.5},
    "existingConfigMap": _one("", *_NAMES),
    "clusterName": _one("", "prod-1", "true", "1e3", "a: b #c", "'\"\\", "é ☃"),
    "retire.schedule": _one("@daily", "23 4 * * *"),
    "retire.staleFor": _one("1d", "0090m"),
    "retire.sink": _one("main", "1e3"),
    "persistence.path": _one("/var/lib/a", "/a: b/#c"),
    "http.address": _one("*", "127.0.0.1", "[::]"),
    "image.registry": _one("registry.example.net", "localhost:5000/1e3"),
    "image.repository": _one("whalebridge", "a/b"),
    "image.tag": _one("", "1.10", "1e3"),
    "image.digest": _one("", "sha256:" + "0" * 64),
    "podSecurityContext": _one(
        {}, {"seLinuxOptions": {"type": "spc_t"}}, {"fsGroup": 1_000_660_000, "supplementalGroups": [7]}
    ),
    "nodeSelector": _texts(("", "1e3")),
    "affinity": _one({}, *_AFFINITIES),
    "priorityClassName": _one("", "system-node-critical"),
    "updateStrategy.maxUnavailable": _one(1, 1_000_000, "10%", "100%"),
    "serviceAccount.name": _one("", *_NAMES),
    "networkPolicy.brokerPorts": _some(1, 4222, 65_535),
    "networkPolicy.brokerNames": _one(["*.example.net"], ["a_1.Example.net.", "**.b.test", "1e3.test"]),
    "networkPolicy.extraEgress": _some({"ports": [{"port": 443, "protocol": "TCP"}]}, {"to": [_POD_SELECTOR]}),
    "podMonitor.metricRelabelings": _some({"action": "labeldrop", "regex": "1e3"}),
    "serviceMonitor.metricRelabelings": _some({"action": "labeldrop", "regex": "1e3"}),
    "podMonitor.extraSpec": _one({}, _LIMITS, {"podMetricsEndpoints": [_ENDPOINT]}),
    "serviceMonitor.extraSpec": _one({}, _LIMITS, {"endpoints": [_ENDPOINT, {"port": "more"}]}),
    "prometheusRule.disabledAlerts": _some("WhalebridgeDown", "WhalebridgeAbsent"),
    "prometheusRule.additionalRules": _some({"record": "a", "expr": "1e3"}, {"alert": "A", "expr": "{{ x }}"}),
    "prometheusRule.severities": _one({}, {"WhalebridgeDown": "info"}),
    "prometheusRule.runbookUrl": _one("https://example.net/a", ""),
    "nameOverride": _one("", "a", "a" * 63),
    "fullnameOverride": _one("", "a", "a" * 70),
    "extraEnv": _some({"name": "A", "value": "1e3"}, {"name": "WHALEBRIDGE_HOST", "value": "{{ .Release.Name }}"}),
    "extraEnvFrom": _some(
        {"configMapRef": {"name": "1e3"}, "prefix": "A_"}, {"secretRef": {"name": "{{ 7 }}", "optional": True}}
    ),
    "extraVolumes": _some({"name": "more", "emptyDir": {}}, {"name": "state", "emptyDir": {"sizeLimit": "1Gi"}}),
    "extraVolumeMounts": _some({"name": "state", "mountPath": "/more"}),
    "extraPodSpec": _one({}, *_POD_SPECS),
    "extraObjects": _some(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}, "data": {"a": "{{ .Values.user }}"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}\n",
    ),
    "global": _one({}, {"imageRegistry": "mirror"}, {"imagePullSecrets": ["parent", {"name": "1e3"}], "other": 1}),
}
"""Choices for values whose schema does not say what Kubernetes accepts."""

_DEFINITIONS: dict[str, Choose] = {
    "namespace": _one("", "default"),
    "names": _some(*_NAMES),
    "peers": _some(*_PEERS),
    "tolerations": _some(*_TOLERATIONS),
    "duration": _one("", "0", "30s", "1m30s", "1y2w3d4h5m6s7ms"),
    "resources": _one({}, {"limits": {"memory": "1Gi", "cpu": 0.5}}, {"requests": {"memory": 67_108_864}}),
}


def valid_values(seed: int) -> dict[str, Any]:
    """Return values that the chart accepts; each of them is set or left out at random."""
    rng = random.Random(seed)  # noqa: S311 (no secrets)
    values: dict[str, Any] = _valid(SCHEMA, "", rng)
    values["image"] = {"registry": "registry.example.net", **values.get("image", {})}
    if values.get("existingConfigMap"):
        values.pop("config", None)
    if values.get("podMonitor", {}).get("enabled"):
        values.setdefault("serviceMonitor", {})["enabled"] = False
    policy = values.setdefault("networkPolicy", {})
    policy["brokerPorts"] = [9094]  # this and names are required for sinks that the chart cannot read
    policy.setdefault("brokerNames", ["a.example.net"])
    return values


def _valid(schema: Schema, path: str, rng: random.Random) -> Any:
    definition, resolved = _definition(schema), _resolved(schema)
    if choose := _CHOICES.get(path) or _DEFINITIONS.get(definition or ""):
        return choose(rng)
    if definition == "texts":
        return _texts(_LABELS if "label" in path.lower() else _TEXTS)(rng)
    if "properties" in resolved:
        parts = resolved["properties"].items()
        return {name: _valid(part, f"{path}.{name}".strip("."), rng) for name, part in parts if rng.random() < 0.5}
    if resolved.get("type") == "integer":
        low, high = resolved["minimum"], resolved.get("maximum", 2_147_483_647)
        return rng.choice([low, min(high, low + 7), min(high, 1_000_660_000)])
    choices = [False, True] if resolved.get("type") == "boolean" else resolved.get("enum")
    assert choices, f"add choices for {path}"
    return rng.choice(choices)


def invalid_values(kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return values of which each is invalid, and the paths that errors must name, such as ``/http/port``.

    Args:
        kind: ``type`` for values of another type, ``range`` for those out of range or of another form, ``key`` for
            unknown keys.
    """
    values: dict[str, Any] = {}
    paths = []
    make_invalid = {"type": _wrong_type, "range": _out_of_range, "key": _unknown_key}[kind]
    for path, schema in _values(SCHEMA, ""):
        wrong = make_invalid(schema)
        if wrong is not None:
            *groups, name = path.split("/")[1:]
            level = values
            for group in groups:
                level = level.setdefault(group, {})
            level[name] = wrong
            paths.append(path)
    return values, paths


def one_invalid_value(seed: int) -> tuple[dict[str, Any], str]:
    """Return valid values of which one was made invalid at random, and the path that the error must name."""
    rng = random.Random(seed)  # noqa: S311 (no secrets)
    make_invalid = rng.choice([_wrong_type, _out_of_range, _unknown_key])
    path, wrong = rng.choice([(path, wrong) for path, schema in _values(SCHEMA, "") if (wrong := make_invalid(schema))])
    level = values = copy.deepcopy(valid_values(seed))
    *groups, name = path.split("/")[1:]
    for group in groups:
        level = level.setdefault(group, {})
    level[name] = wrong
    return values, path


def _values(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield the path and the schema of each value, groups before their parts."""
    for name, part in schema["properties"].items():
        resolved = _resolved(part)
        yield f"{path}/{name}", resolved
        if "properties" in resolved and name != "config":
            yield from _values(resolved, f"{path}/{name}")


def _wrong_type(schema: Schema) -> Any:
    if "properties" in schema:  # its parts become invalid
        return None
    return {"string": 5, "integer": "many", "boolean": "maybe"}.get(schema.get("type", ""), "a text")


def _out_of_range(schema: Schema) -> Any:
    if "minimum" in schema:
        return schema["minimum"] - 1
    if "maxLength" in schema:
        return "x" * (schema["maxLength"] + 1)
    return "/../ !" if "pattern" in schema else "" if "minLength" in schema else "a text" if "enum" in schema else None


def _unknown_key(schema: Schema) -> Any:
    return {"unknown": [1]} if schema.get("additionalProperties", True) is not True else None


def _definition(schema: Schema) -> str | None:
    (reference,) = [each["$ref"] for each in schema.get("allOf", [schema]) if "$ref" in each] or [""]
    return str(reference).rpartition("/")[2] or None


def _resolved(schema: Schema) -> Schema:
    definition = _definition(schema)
    return schema if definition is None else SCHEMA["definitions"][definition]
