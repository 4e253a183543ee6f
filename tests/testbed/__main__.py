"""Install the testbed: `python3 -m tests.testbed install|missing [COMPONENT...]`."""

from __future__ import annotations

import argparse
import sys

from tests.testbed.components import InstallError
from tests.testbed.install import COMPONENTS, KUBERNETES, install, missing


def main() -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.testbed", description="Install the peers of the tests in a cache outside the checkout."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defaults, optional = (", ".join(component.name for component in group) for group in (COMPONENTS, KUBERNETES))
    names = f"names of components; default: {defaults}; optional: {optional}"
    command = commands.add_parser("install", help="install missing components")
    command.add_argument("component", nargs="*", help=names)
    command = commands.add_parser("missing", help="list missing components; exit with status 1 if there are any")
    command.add_argument("component", nargs="*", help=names)
    options = parser.parse_args()
    try:
        if options.command == "missing":
            missing_components = missing(options.component)
            print(*missing_components)
            return 1 if missing_components else 0
        install(options.component)
    except InstallError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
