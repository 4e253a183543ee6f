"""`python3 -m tests.testbed install|missing [COMPONENT...]`."""

from __future__ import annotations

import argparse
import sys

from tests.testbed.components import InstallError
from tests.testbed.install import COMPONENTS, KUBERNETES, install, missing


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.testbed", description="Real peers for the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    names, more = (", ".join(component.name for component in group) for group in (COMPONENTS, KUBERNETES))
    command = commands.add_parser("install", help="install into the cache what is not there yet")
    command.add_argument("component", nargs="*", help=f"only these (also {more}); none: {names}")
    command = commands.add_parser("missing", help="tell what is not there yet; the exit status is 1 if anything is")
    command.add_argument("component", nargs="*", help="as above")
    asked = parser.parse_args()
    try:
        if asked.command == "missing":
            absent = missing(asked.component)
            print(*absent)
            return 1 if absent else 0
        install(asked.component)
    except InstallError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
