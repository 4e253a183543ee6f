"""Which internals of a library a module of ours uses."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import ModuleType


def used_internals(module: ModuleType, own: set[str]) -> dict[str, int]:
    """Return the private names in a module and their lines: attributes, overridden methods, and strings.

    `own` are the names that are ours.
    """
    found: dict[str, int] = {}
    assert module.__file__
    with open(module.__file__) as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                pass
            case ast.ClassDef(body=body):
                for method in body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and _is_private(method.name):
                        found[method.name] = method.lineno
                continue
            case _:
                continue
        if _is_private(name):
            found.setdefault(name, node.lineno)
    return {name: line for name, line in found.items() if name not in own}


def check_internals(module: ModuleType, own: set[str], owners: Mapping[str, object]) -> None:
    """Fail with the lines of the names in a module that the library's object, the name's owner, does not have."""
    missing = [
        f"{module.__file__}:{line}: {type(owners.get(name)).__name__} has no {name}"
        for name, line in used_internals(module, own).items()
        if not hasattr(owners.get(name), name)
    ]
    assert not missing, "\n".join(missing)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier()
