"""A certificate authority for the tests, made with the openssl program."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.testbed.process import run

LOOPBACK = ("localhost", "127.0.0.1")

_CONFIG = """\
[ca]
default_ca = ours
[ours]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = empty
[empty]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[leaf]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, each in a PEM file (`both` has the two, as Kafka's brokers want it)."""

    name: str
    certificate: Path
    key: Path
    combined: Path


class Authority:
    """One authority: `certificate` is what its clients trust. Another instance is the wrong one."""

    def __init__(self, directory: Path, name: str = "whalebridge test authority") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "index.txt").touch()
        (directory / "serial").write_text("1000\n")
        self._config = directory / "openssl.cnf"
        self._config.write_text(_CONFIG.format(folder=directory))
        self.certificate = directory / "ca.pem"
        key = _create_key(directory / "ca.key")
        how = ["-new", "-x509", "-days", "30", "-extensions", "authority", "-subj", f"/CN={name}"]
        _openssl("req", "-config", self._config, *how, "-key", key, "-out", self.certificate)

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = LOOPBACK,
        expired: bool = False,
        password: str | None = None,
    ) -> Certificate:
        """A certificate for a server at these hosts (names or addresses), or for a client of that common name."""
        folder = Path(tempfile.mkdtemp(prefix="issued-", dir=self._directory))
        issued = Certificate(name, folder / "cert.pem", folder / "key.pem", folder / "both.pem")
        plain = _create_key(folder / "plain.key")
        request = folder / "request.pem"
        _openssl("req", "-config", self._config, "-new", "-key", plain, "-subj", f"/CN={name}", "-out", request)
        extensions = folder / "extensions.cnf"
        extensions.write_text(_CONFIG.format(folder=self._directory) + _alternative_names(hosts))
        now = datetime.now(UTC)
        begin, end = (now - timedelta(days=3), now + timedelta(days=-1 if expired else 30))
        dates = ["-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"]
        how = ["-batch", "-notext", "-extensions", "leaf", *dates]
        _openssl("ca", "-config", extensions, *how, "-in", request, "-out", issued.certificate)
        if password is None:
            shutil.copy(plain, issued.key)
        else:
            _openssl("pkcs8", "-topk8", "-in", plain, "-passout", f"pass:{password}", "-out", issued.key)
        issued.combined.write_text(plain.read_text() + issued.certificate.read_text())
        return issued


def _alternative_names(hosts: Sequence[str]) -> str:
    kinds = ("IP" if host.replace(".", "").isdecimal() or ":" in host else "DNS" for host in hosts)
    names = ", ".join(f"{kind}:{host}" for kind, host in zip(kinds, hosts, strict=True))
    return f"subjectAltName = {names}\n" if names else ""


def _create_key(path: Path) -> Path:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
    return path


def _openssl(command: str, *arguments: str | Path) -> None:
    run(["openssl", command, *map(str, arguments)], timeout=20)
