"""What NATS must allow at the least (test_nats_docs has the lists of the page), and what is told where it does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import FreshNats, insist, records, settings
from tests.integration.test_nats_login import SECRET, complaint, publishes
from tests.naming import assert_names, raises_naming
from tests.testbed import nats_auth
from tests.testbed.nats_auth import Permissions

SINK = Permissions(
    publish=["events.>", "$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", "$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS"],
    subscribe=["_INBOX.>"],
)


@pytest.mark.parametrize("create", [True, False])
async def test_what_is_needed_is_enough(fresh_nats: FreshNats, create: bool) -> None:
    login = nats_auth.users({"bridge": SECRET, "admin": SECRET}, {"bridge": SINK})
    peer = fresh_nats(login=login)
    if not create:
        await publishes(peer, auth={"user": "admin", "password": SECRET})
    await publishes(peer, auth={"user": "bridge", "password": SECRET}, stream={"auto_create": create})


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("events.>", r'publish to "events.node-1.shop.started"'),
        ("$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.info.whalebridge_events"'),
        ("$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.create.whalebridge_events"'),
        ("_INBOX.>", r'subscription to "_inbox.'),
    ],
)
async def test_a_permission_that_is_missing_is_named(fresh_nats: FreshNats, missing: str, told: str) -> None:
    def without(subjects: Any) -> list[str]:
        return [subject for subject in subjects if subject != missing] or ["nothing"]

    allowed = Permissions(publish=without(SINK.publish), subscribe=without(SINK.subscribe))
    peer = fresh_nats(login=nats_auth.users({"bridge": SECRET}, {"bridge": allowed}))
    text = await complaint(peer, auth={"user": "bridge", "password": SECRET})
    assert_names(text, f"permissions violation for {told}", "docs/nats.md")


async def test_a_permission_that_is_granted_later_is_used(fresh_nats: FreshNats) -> None:
    def users(permissions: Permissions) -> str:
        return nats_auth.users({"bridge": SECRET}, {"bridge": permissions})

    allowed = Permissions(publish=["$JS.API.>"], subscribe=["_INBOX.>"])
    peer = fresh_nats(login=users(allowed))
    sink = NatsSink(settings(peer, auth={"user": "bridge", "password": SECRET}))
    await sink.start()
    with raises_naming(TransientError, "permissions violation"):
        await sink.publish(records(3))
    config = peer.nodes[0].folder / "nats.conf"
    config.write_text(config.read_text().replace(users(allowed), users(SINK)))
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await insist(sink, records(3))
    await sink.close()


async def test_an_inbox_of_our_own(fresh_nats: FreshNats) -> None:
    allowed = Permissions(publish=SINK.publish, subscribe=["_INBOX.whalebridge.>"])
    peer = fresh_nats(login=nats_auth.users({"bridge": SECRET}, {"bridge": allowed}))
    login = {"user": "bridge", "password": SECRET}
    await publishes(peer, auth=login, inbox_prefix="_INBOX.whalebridge")
    assert "_inbox." in await complaint(peer, auth=login)
