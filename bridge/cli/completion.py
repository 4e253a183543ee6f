"""``whalebridge completion``, and the answers that the scripts it prints ask for."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from bridge.cli import output

NAME = "whalebridge"
_VARIABLE = "_WHALEBRIDGE_COMPLETE"  # set by the scripts where a shell asks


class Shell(StrEnum):
    """What completion is there for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print what makes a shell complete whalebridge's commands and options; nothing is installed by itself.

    \b
    Examples:
      whalebridge completion bash > /etc/bash_completion.d/whalebridge
      whalebridge completion zsh > /usr/local/share/zsh/site-functions/_whalebridge
      whalebridge completion fish > ~/.config/fish/completions/whalebridge.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined] # it does, unmarked

    output.write(get_completion_script(prog_name=NAME, complete_var=_VARIABLE, shell=shell.value))


def asked() -> bool:
    """Tell whether it is a shell that asks, and see to it that typer answers as its scripts have it."""
    if _VARIABLE not in os.environ:
        return False
    from typer.completion import completion_init  # type: ignore[attr-defined] # it does, unmarked

    completion_init()
    return True
