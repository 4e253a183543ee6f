"""Proves that an event flows: the start of this very pod is known, and every sink has acknowledged it."""

import http.client
import json
import os
import socket
import sys
import time

SECONDS = 90


def ask(path):
    """Ask the bridge of this node, through the socket in its directory of state."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect("/var/lib/whalebridge/control.sock")
    connection.request("GET", path)
    return json.load(connection.getresponse())


def known():
    """Whether this pod is among the containers that live."""
    projects = ask("/portfolio")["projects"].values()
    return any((container["pod"] or {}).get("name") == os.environ["POD"] for each in projects for container in each)


def acknowledged(since):
    """Whether each sink has all that was written down by then: what still waits is younger."""
    age = time.monotonic() - since
    return all(not sink["records"] or sink["oldest_age_seconds"] < age for sink in ask("/readyz")["sinks"])


def wait(condition, said, complaint):
    """Poll until the condition holds; end the process where it never does."""
    trouble = ""
    while time.monotonic() < deadline:
        try:
            if condition():
                print(said, flush=True)
                return
        except OSError as error:
            trouble = f" ({error})"
        time.sleep(0.5)
    sys.exit(f"{complaint}{trouble}; /readyz says: {json.dumps(ask('/readyz'))}")


deadline = time.monotonic() + SECONDS
wait(known, "the start of this pod is known", "the bridge of this node does not know of this pod")
seen = time.monotonic()
wait(lambda: acknowledged(seen), "every sink has acknowledged it", "some sink has not acknowledged it")
