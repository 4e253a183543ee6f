"""The files in deploy/compose, as far as they can be checked without images: by the programs that read them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge import __version__
from config.settings import load
from config.sinks.kafka import KafkaSettings
from tests.documentation import ROOT
from tests.integration.engines import one_engine
from tests.testbed.containerd import Containerd
from tests.testbed.install import search_path
from tests.testbed.process import run

DIRECTORY = ROOT / "deploy" / "compose"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((DIRECTORY / "compose.yaml").read_text())["services"])


@one_engine
def test_compose_file_is_valid_for_nerdctl(engine: Containerd, services: dict[str, Any]) -> None:
    result = engine.nerdctl("compose", "--file", str(DIRECTORY / "compose.yaml"), "config")
    assert set(yaml.safe_load(result.stdout)["services"]) == set(services)
    assert services["whalebridge"]["image"] == f"whalebridge:{__version__}"


def test_compose_mounts_exist(services: dict[str, Any]) -> None:
    sources = [volume.partition(":")[0] for each in services.values() for volume in each.get("volumes", [])]
    relative = [source for source in sources if source.startswith(".")]
    assert len(relative) > 3
    assert [source for source in relative if not (DIRECTORY / source).exists()] == []


def test_compose_configuration_publishes_to_its_kafka(services: dict[str, Any]) -> None:
    settings = load(path=str(DIRECTORY / "config.yaml"))
    (sink,) = settings.sinks.values()
    assert isinstance(sink, KafkaSettings)
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert [f"CONTAINERS://{server}" for server in sink.bootstrap_servers] == advertised[:1]
    assert services["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"] in sink.bootstrap_servers


def test_compose_prometheus_accepts_its_configuration(
    services: dict[str, Any], tmp_path: Path, require: Callable[..., None]
) -> None:
    require("prometheus")
    for volume in services["prometheus"]["volumes"]:
        source, target, _ = volume.split(":")
        shutil.copy(DIRECTORY / source, tmp_path / Path(target).name)
    environment = {**os.environ, "PATH": search_path("prometheus")}
    run(["promtool", "check", "config", "prometheus.yml"], directory=tmp_path, env=environment)
    (scraped,) = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    port = yaml.safe_load((DIRECTORY / "config.yaml").read_text())["http"]["listen"].rpartition(":")[2]
    assert scraped["static_configs"] == [{"targets": [f"whalebridge:{port}"]}]


def test_compose_grafana_finds_data_source_and_dashboard(services: dict[str, Any]) -> None:
    grafana = services["grafana"]
    mounts = {target: DIRECTORY / source for source, target, _ in (each.split(":") for each in grafana["volumes"])}
    (provider,) = yaml.safe_load((DIRECTORY / "grafana" / "dashboards.yaml").read_text())["providers"]
    dashboards = mounts[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    variables = json.loads((dashboards / home.name).read_text())["templating"]["list"]
    (source,) = yaml.safe_load((DIRECTORY / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert [each["query"] for each in variables if each["type"] == "datasource"] == [source["type"]]
    assert source["isDefault"]
