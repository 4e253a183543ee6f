"""Who we are, as nats-py wants to be told; files are read anew each time.

They are checked here, because nats-py reads a creds file without a JWT for ever.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped] # has no types of its own
from nats.aio.client import RawCredentials

from bridge.core.errors import TransientError
from sinks.access import read, secret

if TYPE_CHECKING:
    from config.sinks.nats import NatsAuthSettings

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\r?\n(\S+)")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\r?\n(\S+)")
_FILES = ("password_file", "token_file", "nkey_seed_file", "creds_file")


def options(login: NatsAuthSettings) -> dict[str, Any]:
    """Return what ``Client.connect`` is to be told.

    Raises:
        TransientError: A file cannot be read, or holds something else.
    """
    if login.user is not None:
        return {"user": login.user, "password": secret("auth.password", login.password, login.password_file)}
    if token := secret("auth.token", login.token, login.token_file):
        return {"token": token}
    if seed := secret("auth.nkey_seed", login.nkey_seed, login.nkey_seed_file):
        _check_seed(seed, named(login))
        return {"nkeys_seed_str": seed}
    if login.creds_file is not None:
        return {"user_credentials": RawCredentials(_creds(login.creds_file))}
    return {}


def named(login: NatsAuthSettings) -> str:
    """Name the settings in use, for a text that says what to check; "" where there is no login."""
    names = [f"auth.{name} {path}" for name in _FILES if (path := getattr(login, name))]
    names += [f"auth.{name}" for name in ("user", "password", "token", "nkey_seed") if getattr(login, name) is not None]
    return " and ".join(names)


def _creds(path: str) -> str:
    """Return what of a creds file nats-py is to see."""
    text = read("auth.creds_file", path)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if not jwt or not seed:
        raise TransientError(
            f"auth.creds_file {path} does not hold a JWT and its seed, as `nsc generate creds` writes them"
        )
    _check_seed(seed[1], f"auth.creds_file {path}")
    return f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n-----BEGIN USER NKEY SEED-----\n{seed[1]}\n------\n"


def _check_seed(seed: str, name: str) -> None:
    try:
        nkeys.from_seed(bytearray(seed.strip().encode()))
    except (ValueError, nkeys.NkeysError):
        # Not chained: the seed may be in it.
        raise TransientError(f"{name} holds no seed of an nkey (it begins with SU)") from None
