"""The testbed's Debian mirror, in front of a server of the test."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.testbed.debian_mirror import DebianMirror

INDEX, PACKAGE = "debian/dists/trixie/InRelease", "debian/pool/main/a/a/a_1%2b1_amd64.deb"


def fetch(mirror: DebianMirror, path: str) -> str:
    with urllib.request.urlopen(f"{mirror.url}/{path}", timeout=30) as response:  # noqa: S310 - our own server
        content: bytes = response.read()
    return content.decode()


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the files of the upstream server; the mirror keeps its copies in a directory of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (INDEX, PACKAGE.replace("%2b", "+")):
        (tmp_path / "upstream" / path).parent.mkdir(parents=True)
        (tmp_path / "upstream" / path).write_text("first")
    return tmp_path / "upstream"


def test_debian_mirror_refreshes_indices_and_keeps_packages(upstream: Path) -> None:
    with DebianMirror(upstream.as_uri()) as mirror:
        assert [fetch(mirror, path) for path in (INDEX, PACKAGE)] == ["first", "first"]
        for path in (INDEX, PACKAGE.replace("%2b", "+")):
            (upstream / path).write_text("second")
        assert [fetch(mirror, path) for path in (INDEX, PACKAGE)] == ["second", "first"]


def test_debian_mirror_serves_copies_while_upstream_is_down(upstream: Path) -> None:
    with DebianMirror(upstream.as_uri()) as mirror:
        fetch(mirror, INDEX)
    with DebianMirror("http://127.0.0.1:1") as mirror:
        assert fetch(mirror, INDEX) == "first"
        with pytest.raises(urllib.error.HTTPError, match="502"):
            fetch(mirror, PACKAGE)


@pytest.mark.parametrize("path", ["etc/passwd", "debian/../etc/passwd", "debian/dists/missing"])
def test_debian_mirror_has_no_other_paths(path: str, upstream: Path) -> None:
    with DebianMirror(upstream.as_uri()) as mirror, pytest.raises(urllib.error.HTTPError, match=r"404|502"):
        fetch(mirror, path)
