"""Authentication of NATS clients: the server's configuration, and the client's credentials.

The nkeys library generates keys. This module signs the JWTs of an operator, its accounts and users, so that `nsc` is
not needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

NO_AUTH = ""
"""Configuration of a server without authentication."""

# Seconds in which a client must authenticate; the default, 2, may be too short on a busy machine.
AUTH_TIMEOUT = 30

_UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


@dataclass(frozen=True)
class Permissions:
    """The subjects that a user may publish to and subscribe to; None: all."""

    publish: Sequence[str] | None = None
    subscribe: Sequence[str] | None = None

    def config(self) -> dict[str, Any]:
        """Return the permissions in the format of a server's configuration."""
        kinds = {"publish": self.publish, "subscribe": self.subscribe}
        return {kind: list(subjects) for kind, subjects in kinds.items() if subjects is not None}

    def claims(self) -> dict[str, Any]:
        """Return the permissions in the format of a user's JWT."""
        kinds = {"pub": self.publish, "sub": self.subscribe}
        return {kind: {} if subjects is None else {"allow": list(subjects)} for kind, subjects in kinds.items()}


ALLOW_ALL = Permissions()


@dataclass(frozen=True)
class Key:
    """An nkey: the public key and the secret seed."""

    public: str
    seed: str

    @classmethod
    def generate(cls, kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
        """Return a random key; kinds are nkeys.PREFIX_BYTE_*."""
        seed = nkeys.encode_seed(os.urandom(32), kind)
        return cls(nkeys.from_seed(bytearray(seed)).public_key.decode(), seed.decode())

    def sign(self, data: bytes) -> bytes:
        """Return an Ed25519 signature."""
        signature: bytes = nkeys.from_seed(bytearray(self.seed.encode())).sign(data)
        return signature


def token_config(secret: str) -> str:
    """Return the configuration of a server that requires a token."""
    return _render({"authorization": {"timeout": AUTH_TIMEOUT, "token": secret}})


def users_config(passwords: dict[str, str], permissions: dict[str, Permissions] | None = None) -> str:
    """Return the configuration of a server with passwords by user; users without `permissions` may do everything."""
    permissions = permissions or {}
    users = [
        {"user": user, "password": password, "permissions": permissions.get(user, ALLOW_ALL).config()}
        for user, password in passwords.items()
    ]
    return _render({"authorization": {"timeout": AUTH_TIMEOUT, "users": users}})


def nkey_config(key: Key, permissions: Permissions = ALLOW_ALL) -> str:
    """Return the configuration of a server that accepts an nkey."""
    users = [{"nkey": key.public, "permissions": permissions.config()}]
    return _render({"authorization": {"timeout": AUTH_TIMEOUT, "users": users}})


@dataclass(frozen=True)
class Operator:
    """An operator with one account for users, which has JetStream, and a system account."""

    operator: Key = field(default_factory=lambda: Key.generate(nkeys.PREFIX_BYTE_OPERATOR))
    account: Key = field(default_factory=lambda: Key.generate(nkeys.PREFIX_BYTE_ACCOUNT))
    system: Key = field(default_factory=lambda: Key.generate(nkeys.PREFIX_BYTE_ACCOUNT))

    def config(self) -> str:
        """Return the configuration of a server that trusts this operator."""
        storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        accounts = {
            self.account.public: _jwt(self.operator, self.account.public, "bridge", _account_claims(storage)),
            self.system.public: _jwt(self.operator, self.system.public, "system", _account_claims({})),
        }
        claims = {"type": "operator", "version": 2, "system_account": self.system.public}
        return _render(
            {
                "authorization": {"timeout": AUTH_TIMEOUT},
                "operator": _jwt(self.operator, self.operator.public, "testbed", claims),
                "system_account": self.system.public,
                "resolver": "MEMORY",
                "resolver_preload": accounts,
            }
        )

    def write_creds(
        self, path: Path, *, user: str = "bridge", permissions: Permissions = ALLOW_ALL, seconds: int = 3600
    ) -> Path:
        """Write the credentials file of a user of the account; negative `seconds` make expired credentials."""
        key = Key.generate()
        claims = {"type": "user", "version": 2, **_UNLIMITED, **permissions.claims()}
        jwt = _jwt(self.account, key.public, user, claims, expires=int(time.time()) + seconds)
        path.touch(0o600)
        path.write_text(_pem_block("NATS USER JWT", jwt) + "\n" + _pem_block("USER NKEY SEED", key.seed))
        return path


def _account_claims(storage: dict[str, int]) -> dict[str, Any]:
    limits = {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1, **_UNLIMITED, **storage}
    return {"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}


def _jwt(issuer: Key, subject: str, name: str, claims: dict[str, Any], expires: int | None = None) -> str:
    """Return a JWT as NATS defines it: signed by an nkey, with a digest of the claims as its id."""
    payload: dict[str, Any] = {"iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject}
    payload |= {"exp": expires} if expires is not None else {}
    payload["nats"] = claims
    digest = hashlib.new("sha512_256", _json(payload)).digest()
    payload["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_base64(_json({'typ': 'JWT', 'alg': 'ed25519-nkey'}))}.{_base64(_json(payload))}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def _pem_block(title: str, content: str) -> str:
    return f"-----BEGIN {title}-----\n{content}\n------END {title}------\n"


def _render(config: dict[str, Any]) -> str:
    """Return the configuration as text; nats-server accepts values in JSON."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
