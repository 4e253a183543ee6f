"""The configuration file of the real program on a real containerd."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, ContainerFactory, whalebridge
from tests.integration.engines import one_engine
from tests.testbed.process import run


@one_engine
def test_run_merges_file_environment_and_options(container_factory: ContainerFactory, tmp_path: Path) -> None:
    records, overridden = tmp_path / "records.jsonl", tmp_path / "overridden.jsonl"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"host: from-file\nnamespaces: {{include: [shop]}}\nlabels: {{include: [kept]}}\n"
        f"log: {{format: json, level: warning}}\nsinks:\n  main:\n    type: file\n    path: {overridden}\n"
    )
    environment = {"WHALEBRIDGE_HOST": "from-environment", "WHALEBRIDGE_SINKS__MAIN__PATH": str(records)}
    flags = ("--config", str(config), "--log-level", "info")
    with BridgeProcess(container_factory.address, tmp_path, *flags, environment=environment) as bridge:
        bridge.wait_logged("synced")
        container_factory.run()
        in_shop = container_factory.run("shop", labels={"kept": "yes", "dropped": "yes"})
        eventually(lambda: any('"started"' in line for line in records.read_text().splitlines()))
    documents = [json.loads(line) for line in records.read_text().splitlines()]
    assert {document["host"] for document in documents} == {"from-environment"}
    (started,) = [document["container"] for document in documents if document["type"] == "started"]
    assert (started["id"], started["labels"]) == (in_shop, {"kept": "yes"})
    assert not overridden.exists()


@one_engine
def test_commands_accept_a_relative_config_path(container_factory: ContainerFactory, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"containerd: {{address: {container_factory.address}}}\nnamespaces: {{include: [shop]}}\n"
    )
    container_factory.run()
    in_shop = container_factory.run("shop")
    command = [*WHALEBRIDGE, "list", "--json", "--config", "config.yaml"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run(command, directory=tmp_path, env=environment)
    assert [each["container"]["id"] for each in json.loads(done.stdout)] == [in_shop]
    done = whalebridge("inspect", in_shop, "--config", str(tmp_path / "config.yaml"))
    assert json.loads(done.stdout)["namespace"] == "shop"
