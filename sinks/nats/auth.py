"""Credentials for nats-py; files are read again for each connection.

Files are checked here, because nats-py never finishes reading a creds file without a JWT.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped] # has no types of its own
from nats.aio.client import RawCredentials

from bridge.core.errors import TransientError
from sinks.credentials import configured_credentials, read_setting_file, resolve_secret
from sinks.token_command import run_token_command

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from config.sinks.nats import NatsAuthSettings

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\r?\n(\S+)")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\r?\n(\S+)")


async def connect_options(auth: NatsAuthSettings, clock: Clock) -> dict[str, Any]:
    """Return the credentials as options of ``Client.connect``.

    Raises:
        TransientError: A file cannot be read, or is invalid; or the token command failed.
    """
    if auth.token_command:
        return {"token": await run_token_command(auth.token_command, clock)}
    if auth.user is not None:
        return {"user": auth.user, "password": resolve_secret("auth.password", auth.password, auth.password_file)}
    if token := resolve_secret("auth.token", auth.token, auth.token_file):
        return {"token": token}
    if seed := resolve_secret("auth.nkey_seed", auth.nkey_seed, auth.nkey_seed_file):
        _check_seed(seed, configured_credentials(auth))
        return {"nkeys_seed_str": seed}
    if auth.creds_file is not None:
        return {"user_credentials": RawCredentials(_read_creds(auth.creds_file))}
    return {}


def _read_creds(path: str) -> str:
    """Return the JWT and the seed of a creds file, in the format of nats-py."""
    text = read_setting_file("auth.creds_file", path)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if not jwt or not seed:
        raise TransientError(
            f"auth.creds_file {path} does not contain a JWT and its seed; create it with `nsc generate creds`"
        )
    _check_seed(seed[1], f"auth.creds_file {path}")
    return f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n-----BEGIN USER NKEY SEED-----\n{seed[1]}\n------\n"


def _check_seed(seed: str, name: str) -> None:
    try:
        nkeys.from_seed(bytearray(seed.strip().encode()))
    except (ValueError, nkeys.NkeysError):
        # Not chained: the error may contain the seed.
        raise TransientError(f"{name} contains no nkey seed (a seed begins with SU)") from None
