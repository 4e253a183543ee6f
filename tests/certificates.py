"""A certificate authority for the tests, based on the openssl program."""

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
default_ca = authority_files
[authority_files]
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
certificate = {directory}/ca.pem
private_key = {directory}/ca.key
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
    """A certificate and its key, each in a PEM file (`combined` has both, as Kafka's brokers require)."""

    name: str
    certificate: Path
    key: Path
    combined: Path


class Authority:
    """A certificate authority; clients trust `certificate`. Each instance is a different authority."""

    def __init__(self, directory: Path, name: str = "whalebridge test authority") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "index.txt").touch()
        (directory / "serial").write_text("1000\n")
        self._config = directory / "openssl.cnf"
        self._config.write_text(_CONFIG.format(directory=directory))
        self.certificate = directory / "ca.pem"
        key = _create_key(directory / "ca.key")
        options = ["-new", "-x509", "-days", "30", "-extensions", "authority", "-subj", f"/CN={name}"]
        _openssl("req", "-config", self._config, *options, "-key", key, "-out", self.certificate)

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = LOOPBACK,
        expired: bool = False,
        password: str | None = None,
    ) -> Certificate:
        """Issue a certificate for a server at `hosts` (names or addresses) or a client; `name` is the common name."""
        directory = Path(tempfile.mkdtemp(prefix="issued-", dir=self._directory))
        issued = Certificate(name, directory / "cert.pem", directory / "key.pem", directory / "combined.pem")
        plain_key = _create_key(directory / "plain.key")
        request = directory / "request.pem"
        _openssl("req", "-config", self._config, "-new", "-key", plain_key, "-subj", f"/CN={name}", "-out", request)
        extensions = directory / "extensions.cnf"
        extensions.write_text(_CONFIG.format(directory=self._directory) + _alternative_names(hosts))
        now = datetime.now(UTC)
        start, end = (now - timedelta(days=3), now + timedelta(days=-1 if expired else 30))
        dates = ["-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"]
        options = ["-batch", "-notext", "-extensions", "leaf", *dates]
        _openssl("ca", "-config", extensions, *options, "-in", request, "-out", issued.certificate)
        if password is None:
            shutil.copy(plain_key, issued.key)
        else:
            _openssl("pkcs8", "-topk8", "-in", plain_key, "-passout", f"pass:{password}", "-out", issued.key)
        issued.combined.write_text(plain_key.read_text() + issued.certificate.read_text())
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
