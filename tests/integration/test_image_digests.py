"""The digest of a container's image in its records: what the name pointed to then, even if it changes later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, RecordDict
from tests.integration.proxy_calls import unique_id
from tests.proxy_process import ProxyProcess
from tests.testbed import image
from tests.testbed.containerd import Containerd, busybox_path


@pytest.fixture(params=["socket", "proxy"])
def address(engine: Containerd, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of containerd's socket, or of a proxy in front of it."""
    if request.param == "socket":
        yield engine.address
        return
    with ProxyProcess(engine.address, tmp_path) as proxy:
        yield proxy.address


def tag_new_image(engine: Containerd, name: str) -> str:
    """Make a name point to a new image, whose digest is returned."""
    archive = engine.directory / "image.tar"
    archive.write_bytes(image.oci_archive(busybox_path(), name, labels={"number": unique_id("image")}))
    engine.ctr("images", "import", str(archive))
    return engine.image_digest(name)


def run(engine: Containerd, name: str) -> str:
    id_ = unique_id("digest")
    engine.ctr("run", "--detach", "--null-io", name, id_, "sleep", "86400")
    return id_


def digests(records: list[RecordDict], type_: str) -> dict[str, str | None]:
    """Digest in the last record of a type, for each container."""
    return {each["id"]: each["container"]["image_digest"] for each in records if each["type"] == type_}


def test_digest_is_that_of_creation_even_if_tag_moves(engine: Containerd, address: str, tmp_path: Path) -> None:
    name = f"example.com/{unique_id('app')}:1"
    (tmp_path / "stateless").mkdir()
    digest = tag_new_image(engine, name)
    before = run(engine, name)
    with BridgeProcess(address, tmp_path, state_dir=tmp_path / "state") as bridge:
        bridge.wait_synced()
        first = run(engine, name)
        bridge.wait(lambda records: first in digests(records, "started"), "the first start")
        newer_digest = tag_new_image(engine, name)
        assert newer_digest != digest
        second = run(engine, name)
        bridge.wait(lambda records: second in digests(records, "started"), "the second start")
        engine.ctr("tasks", "kill", "--signal=SIGKILL", first)
        records = bridge.wait(lambda records: first in digests(records, "exited"), "the exit")
        assert digests(records, "present")[before] == digest
        assert digests(records, "started") == {first: digest, second: newer_digest}
        assert digests(records, "exited") == {first: digest}

        engine.ctr("images", "rm", name)
        bridge.stop()
        bridge.start()
        records = bridge.wait_synced(2)
        present = digests(records, "present")
        assert (present[before], present[second]) == (digest, newer_digest)
        assert bridge.log_lines("image_digests_unavailable") == []
    with BridgeProcess(address, tmp_path / "stateless") as bridge:
        present = digests(bridge.wait_synced(), "present")
        assert (present[before], present[second]) == (None, None)


def test_digest_is_unknown_if_tag_moved_before_the_first_look(engine: Containerd, tmp_path: Path) -> None:
    name = f"example.com/{unique_id('app')}:1"
    tag_new_image(engine, name)
    before = run(engine, name)
    digest = tag_new_image(engine, name)
    after = run(engine, name)
    with BridgeProcess(engine.address, tmp_path) as bridge:
        present = digests(bridge.wait_synced(), "present")
    assert (present[before], present[after]) == (None, digest)
