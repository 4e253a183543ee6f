"""A certificate authority for the tests, based on the openssl program."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.process import run

LOOPBACK = ("localhost", "127.0.0.1")


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
        self.certificate = directory / "ca.pem"
        self._key = _create_key(directory / "ca.key")
        options = ["-new", "-x509", "-days", "30", "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign"]
        _openssl("req", *options, "-key", self._key, "-out", self.certificate)

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
        request, extensions = directory / "request.pem", directory / "extensions.cnf"
        _openssl("req", "-new", "-key", plain_key, "-subj", f"/CN={name}", "-out", request)
        extensions.write_text(f"basicConstraints = CA:FALSE\n{_alternative_names(hosts)}")
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-days", "-1" if expired else "30"]
        _openssl("x509", "-req", *signed, "-extfile", extensions, "-in", request, "-out", issued.certificate)
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
