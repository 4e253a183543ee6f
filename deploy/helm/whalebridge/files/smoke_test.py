"""Proves that an event flows: the start of this very pod is known, and every sink has acknowledged it."""

import http.client
import json
import os
import socket
import sys
import time

SECONDS = 90
SOCKET = "/var/lib/whalebridge/control.sock"


def ask(path):
    """Ask the bridge of this node."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(SOCKET)
    connection.request("GET", path)
    return json.load(connection.getresponse())


def not_known():
    """Complain if this pod is not among the containers that live."""
    projects = ask("/portfolio")["projects"].values()
    pods = {(container["pod"] or {}).get("name") for each in projects for container in each}
    return "" if os.environ["POD"] in pods else "the bridge of this node does not know of this pod"


def not_acknowledged(since):
    """Complain of sinks that have not all that was written down by then: what may still wait is younger."""
    age = time.monotonic() - since
    late = [sink for sink in ask("/readyz")["sinks"] if sink["records"] and sink["oldest_age_seconds"] >= age]
    return f"not acknowledged by {json.dumps(late)}" if late else ""


def wait(complain):
    """Poll until there is nothing to complain of; end the process where there always is."""
    while True:
        try:
            complaint = complain()
        except OSError as error:
            complaint = f"the bridge of this node does not answer at {SOCKET}: {error}"
        if not complaint:
            return
        if time.monotonic() > deadline:
            sys.exit(complaint)
        time.sleep(0.5)


deadline = time.monotonic() + SECONDS
wait(not_known)
print("the start of this pod is known", flush=True)
seen = time.monotonic()
wait(lambda: not_acknowledged(seen))
print("every sink has acknowledged it", flush=True)
