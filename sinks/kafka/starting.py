"""Starting aiokafka's clients so that nothing is left of one that is interrupted meanwhile."""

from __future__ import annotations

import traceback

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from sinks.kafka.cluster import hang_up


async def start(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Start a client; whoever gives that up lets go of the client as ever.

    A client first asks over a connection that is not among its others yet. Interrupted there, aiokafka leaves it to
    itself, open and with a task that reads from it, and nothing but the frame that was interrupted knows of it.
    """
    try:
        await client.start()
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if connection := frame.f_locals.get("bootstrap_conn"):
                await hang_up(connection)
        raise
