"""The files of a release, and the commands of docs/install.md, which a Debian machine runs word by word."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from aiokafka.errors import UnknownTopicOrPartitionError

from bridge import __version__
from tests.documentation import ROOT, code_blocks, shell_commands
from tests.eventually import eventually
from tests.integration.engines import one_engine
from tests.kubernetes.rendering import helm
from tests.testbed import debian_machine
from tests.testbed.containerd import Containerd
from tests.testbed.debian_machine import DebianMachine
from tests.testbed.kafka import Kafka
from tests.testbed.process import CommandError, run

pytestmark = pytest.mark.timeout(900)

MAKE_DIST = "make dist"
COMMIT_TIME = 1_795_636_099
REPOSITORY = "https://code.example.org/Whales/bridge"
IMAGE = "registry.example.org/whales/bridge"
SOCKET = "/run/containerd/containerd.sock"
INSTALL = (ROOT / "docs" / "install.md").read_text()
PROXY = (ROOT / "docs" / "proxy.md").read_text()


def make_dist(checkout: Path) -> Path:
    """Build the files of a release in a git repository with the files of this checkout; return their directory."""
    files = run(["git", "ls-files", "-z"], directory=ROOT).stdout
    for name in filter(None, files.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    environment = os.environ | {"GIT_COMMITTER_DATE": f"@{COMMIT_TIME} +0000", "EMAIL": "tests@example.org"}
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        run(["git", *arguments], directory=checkout, env=environment)
    (checkout / "bridge" / "untracked.py").touch()
    # With the installed test tools, instead of a download of them, and without the arguments of `make test`.
    command = [*shlex.split(MAKE_DIST), "--old-file=setup", f"BIN={Path(sys.executable).parent}"]
    command.append(f"ARGS=--repository {REPOSITORY} --image {IMAGE}")
    run(command, directory=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, timeout=300)
    return checkout / "dist"


def documented(title: str = "") -> list[str]:
    """Return the commands of a section, or of all, except `make dist` (see `make_dist`)."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", INSTALL, re.MULTILINE | re.DOTALL) if title else [INSTALL]
    commands = [*shell_commands(text, "sh"), *shell_commands(text, "console")]
    return [command for command in commands if command != MAKE_DIST]


def pip_settings() -> dict[str, str]:
    """Return the environment variables that configure pip."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the files of a release."""
    return make_dist(tmp_path_factory.mktemp("release"))


def test_release_files_depend_only_on_commit(release: Path, tmp_path: Path) -> None:
    (source,) = release.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert {entry.mtime for entry in archive} == {COMMIT_TIME}
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert not (unpacked / "bridge" / "untracked.py").exists()
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(COMMIT_TIME)}
    command = [sys.executable, "deploy/dist.py", "--repository", REPOSITORY, "--image", IMAGE]
    run(command, directory=unpacked, env=environment, timeout=300)
    assert {path.name for path in release.iterdir()} == {path.name for path in (unpacked / "dist").iterdir()}
    # A source distribution that was built from an unpacked one has its metadata twice.
    differing = {
        path.name for path in release.iterdir() if path.read_bytes() != (unpacked / "dist" / path.name).read_bytes()
    }
    assert differing == {source.name, "SHA256SUMS"}
    chart = unpacked / "deploy" / "helm" / "whalebridge"  # as in the checkout
    assert "sources" not in yaml.safe_load((chart / "Chart.yaml").read_text())
    assert yaml.safe_load((chart / "values.yaml").read_text())["image"]["registry"] == ""


@pytest.mark.parametrize(
    ("flags", "image"),
    [
        ([], f"{IMAGE}:{__version__}"),
        (["--set=global.imageRegistry=mirror"], f"mirror/bridge:{__version__}"),
        (["--set=image.registry=mirror,image.repository=whales"], f"mirror/whales:{__version__}"),
    ],
)
def test_release_chart_refers_to_image_and_repository(
    release: Path, flags: list[str], image: str, require: Callable[..., None]
) -> None:
    require("helm")
    chart = str(release / f"whalebridge-{__version__}.tgz")
    objects = helm("template", "w", chart, "--kube-version=1.34", "--set=prometheusRule.enabled=true", *flags)
    assert set(re.findall(r'\bimage: "?([^"\s]*)', objects)) == {image}
    assert f"runbook_url: {REPOSITORY}/blob/v{__version__}/docs/operations.md#whalebridgedown" in objects
    assert "0 chart(s) failed" in helm("lint", "--strict", chart)
    metadata = yaml.safe_load(helm("show", "chart", chart))
    assert (metadata["home"], metadata["sources"]) == (REPOSITORY, [REPOSITORY])
    assert [maintainer["url"] for maintainer in metadata["maintainers"]] == [REPOSITORY]
    links = {each["name"]: each["url"] for each in yaml.safe_load(metadata["annotations"]["artifacthub.io/links"])}
    assert links.pop("Issues") == f"{REPOSITORY}/issues"
    for url in (metadata["icon"], *links.values()):
        kind, tag, path = url.removeprefix(f"{REPOSITORY}/").split("/", 2)
        assert (kind, tag) == ("raw" if path.endswith(".svg") else "blob", f"v{__version__}")
        assert (ROOT / path).is_file()
    images = yaml.safe_load(metadata["annotations"]["artifacthub.io/images"])
    assert images == [{"name": "whalebridge", "image": f"{IMAGE}:{__version__}"}]


def run_section(machine: DebianMachine, title: str, variables: Mapping[str, str]) -> str:
    """Run the commands of a section; return their output."""
    output = ""
    for command in documented(title):
        on_terminal = f"script --quiet --return --command {shlex.quote(command)} /dev/null"
        line = on_terminal if "--pty" in command else command  # without a terminal, systemd-run --pty shows nothing
        output += machine.run(line, env=variables, timeout=600).stdout
    return output


def documented_environment(brokers: str, topic: str) -> str:
    """Return the documented file of environment variables, with other addresses of brokers and containerd."""
    (text,) = [block for block in code_blocks(INSTALL, "ini") if "SINKS" in block]
    text = text.replace("broker-1:9092,broker-2:9092/containers", f"{brokers}/{topic}")
    return text.replace("/run/k3s/containerd/containerd.sock", SOCKET)


@one_engine
def test_documented_installation_publishes_to_kafka(
    release: Path, engine: Containerd, kafka: Kafka, require_as_root: Callable[..., None]
) -> None:
    require_as_root(*debian_machine.COMPONENTS)
    topic = f"installed-{secrets.token_hex(4)}"

    def wait_for_exit_of_new_container() -> None:
        name = f"{topic}-{secrets.token_hex(4)}"
        engine.run(name, "true")
        eventually(lambda: ("exited", name) in published(kafka, topic), "the exit of a container in Kafka", within=90)

    with DebianMachine(engine.address) as machine:
        shutil.copytree(release, machine.root / "root" / "dist")
        output = run_section(machine, "Install", pip_settings())
        assert f"\nwhalebridge {__version__}\n" in output
        assert f"ok        {SOCKET}: " in output
        machine.run("/opt/whalebridge/bin/pip check")
        machine.run("bash -c '. /etc/bash_completion.d/whalebridge; complete -p whalebridge'")
        machine.run("ls /opt/whalebridge/share/README.md /opt/whalebridge/share/docs/proxy.md")  # named in the units

        assert "Active: active (running)" in run_section(machine, "As a systemd service", {})
        eventually(
            lambda: "snapshot_completed" in machine.run("journalctl -u whalebridge").stdout, "records in the journal"
        )
        (machine.root / "etc" / "whalebridge" / "environment").write_text(
            documented_environment(kafka.bootstrap, topic)
        )
        output = run_section(machine, "As a systemd service", {})
        assert f"connected; topic {topic} exists and is writable" in " ".join(output.split())
        assert_invalid_configuration_fails_reload(machine)
        wait_for_exit_of_new_container()
        run_section(machine, "Upgrade", pip_settings())
        wait_for_exit_of_new_container()
        assert machine.run("systemctl show --property=NRestarts whalebridge").stdout == "NRestarts=0\n"

        with running_behind_proxy(machine):
            wait_for_exit_of_new_container()

        run_section(machine, "Remove", {})
        remaining = machine.run("find / -xdev -path /root -prune -o -name '*whalebridge*' -prune -print").stdout
        directories = {f"/var/{kind}/{parent}whalebridge" for kind in ("lib", "log") for parent in ("", "private/")}
        assert set(remaining.split()) == {"/etc/whalebridge", *directories}
        assert "outbox.db" in machine.run("ls /var/lib/whalebridge/").stdout

        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/packages"}
        run_section(machine, "Install", offline)
        run_section(machine, "As a systemd service", {})
        wait_for_exit_of_new_container()


def assert_invalid_configuration_fails_reload(machine: DebianMachine) -> None:
    """Reload invalid settings, and then valid ones; the service keeps running."""

    def wait_logged(text: str) -> None:
        eventually(lambda: text in machine.run("journalctl -u whalebridge").stdout, text)

    configuration = machine.root / "etc" / "whalebridge" / "config.yaml"
    configuration.write_text("log: {level: loud}\n")
    with pytest.raises(CommandError):
        machine.run("systemctl reload whalebridge")
    wait_logged("error     settings: /etc/whalebridge/config.yaml:1: log.level: ")
    wait_logged("settings_reload_failed")
    configuration.write_text("log: {level: debug}\n")
    machine.run("systemctl reload whalebridge")
    wait_logged("settings_reloaded")
    configuration.unlink()


def documented_proxy() -> tuple[list[str], list[str]]:
    """Return the commands of docs/proxy.md that start the proxy as a service, and those that remove it."""
    start, remove = code_blocks(PROXY, "sh")
    return start.splitlines(), remove.splitlines()


@contextlib.contextmanager
def running_behind_proxy(machine: DebianMachine) -> Iterator[None]:
    """Let the service of whalebridge use the proxy within the context, as docs/proxy.md says."""
    start, remove = documented_proxy()
    (drop_in,) = code_blocks(PROXY, "ini")
    (proxy,) = set(re.findall(r"`(/run/whalebridge-proxy/containerd\.sock)`", PROXY))
    override = machine.root / "etc" / "systemd" / "system" / "whalebridge.service.d" / "override.conf"
    for command in start:
        machine.run(command)
    override.parent.mkdir()
    override.write_text(drop_in)
    environment = machine.root / "etc" / "whalebridge" / "environment"
    direct = environment.read_text()
    environment.write_text(direct.replace(SOCKET, proxy))
    machine.run("systemctl daemon-reload; systemctl restart whalebridge")
    groups = machine.run("grep ^Groups: /proc/$(systemctl show --property=MainPID --value whalebridge)/status").stdout
    assert "0" not in groups.split()
    yield
    shutil.rmtree(override.parent)
    environment.write_text(direct)
    for command in ("systemctl stop whalebridge", *remove, "systemctl start whalebridge"):
        machine.run(command)


def published(kafka: Kafka, topic: str) -> list[tuple[str, str]]:
    """Return type and id of the records in the topic."""
    try:
        values = [each.value for each in kafka.admin.records(topic)]
    except UnknownTopicOrPartitionError:
        return []
    return [(record["type"], record["id"]) for record in map(json.loads, filter(None, values))]
