"""The chart with random values: what the schema accepts is valid for Kubernetes, and errors name each invalid value."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.kubernetes.random_values import invalid_values, one_invalid_value, valid_values
from tests.kubernetes.rendering import CHART, FOREIGN, find_one, helm, render
from tests.scale import scaled
from tests.testbed.process import CommandError


@pytest.fixture(autouse=True)
def _helm(require: Callable[..., None]) -> None:
    require("helm")


@pytest.mark.parametrize("seed", range(scaled(reduced=12, full=200)))
def test_random_values_give_valid_objects(seed: int, tmp_path: Path) -> None:
    version = ("1.25", "1.28", "1.29", "1.34")[seed % 4]
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(valid_values(seed)))
    manifests = render(flags=[f"--values={path}"], kubernetes=version)
    names = [(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) for each in manifests]
    assert len(names) == len(set(names))
    for manifest in manifests:
        labels = manifest["metadata"].get("labels", {}).values()  # their form is not in Kubernetes' schemas
        assert all(re.fullmatch(r"(?=.{0,63}$)([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", each) for each in labels)
        if manifest["kind"] not in FOREIGN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(manifest, version, strict=True)
    template = find_one(manifests, "DaemonSet")["spec"]["template"]
    for part in (*template["spec"]["initContainers"], *template["spec"]["containers"]):
        for name, key in (("env", "name"), ("volumeMounts", "mountPath")):
            keys = [each[key] for each in part.get(name, ())]
            assert len(keys) == len(set(keys)), part
    volumes = [each["name"] for each in template["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))


def test_random_values_set_every_value() -> None:
    def paths(level: dict[str, Any], path: str = "") -> set[str]:
        found = {f"{path}/{name}" for name in level}
        return found.union(*(paths(each, f"{path}/{name}") for name, each in level.items() if isinstance(each, dict)))

    generated = set().union(*(paths(valid_values(seed)) for seed in range(200)))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    free = ("/nodeSelector/", "/resources/", "/proxy/resources/", "/retire/resources/", "/dashboard/labels/")
    assert {path for path in paths(defaults) if not path.startswith(free)} <= generated


@pytest.mark.parametrize("seed", range(scaled(reduced=5, full=50)))
def test_error_names_only_invalid_value(seed: int, tmp_path: Path) -> None:
    values, invalid = one_invalid_value(seed)
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(values))
    with pytest.raises(CommandError) as caught:
        helm("template", "whalebridge", str(CHART), "--kube-version=1.34", f"--values={path}")
    named = [each for each, _ in re.findall(r"at '(/[^']*)': (.+)", caught.value.result.stderr)]
    assert {invalid, f"{invalid}/unknown"} & set(named)
    assert [each for each in named if not f"{invalid}/unknown".startswith(each)] == []  # no other but its groups


@pytest.mark.parametrize("kind", ["type", "range", "key"])
def test_errors_name_every_invalid_value(kind: str, tmp_path: Path) -> None:
    values, paths = invalid_values(kind)
    assert len(paths) >= 30
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(values))
    with pytest.raises(CommandError) as caught:
        helm("template", "whalebridge", str(CHART), "--kube-version=1.34", f"--values={path}")
    named = set(re.findall(r"at '(/[^']*)'", caught.value.result.stderr))
    assert [each for each in paths if not {each, f"{each}/unknown"} & named] == []
