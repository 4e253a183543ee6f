"""Label rules: which labels may be stored and published, by include, exclude and redact globs on the label key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from msgspec.structs import replace

from bridge.core.containerd_model import Labels, Metadata

REDACTED = "[redacted]"
_WILDCARDS = frozenset("*?[")
_MAX_CACHED_DECISIONS = 10_000  # a node has few distinct keys; generated keys must not exhaust memory


class LabelRules:
    """Decide by key whether a label is kept, dropped or redacted; only ``redact`` ignores case.

    A label is kept if its key matches a glob of ``include`` and no glob of ``exclude``. A key that ``include`` lists
    without wildcards is kept regardless of ``exclude``. If the key of a kept label matches ``redact``, the value is
    replaced. The globs come from the settings (``LabelsSettings``).
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str], redact: Iterable[str]) -> None:
        include = tuple(include)
        self._exact_keys = frozenset(glob for glob in include if not _WILDCARDS & set(glob))
        self._include = _compile_globs(include)
        self._exclude = _compile_globs(exclude)
        self._redact = _compile_globs(redact, re.IGNORECASE)
        self._decisions: dict[str, tuple[bool, bool]] = {}

    @classmethod
    def keep_all(cls) -> LabelRules:
        """Return rules that keep every label unchanged, for use as a library."""
        return cls(include=("*",), exclude=(), redact=())

    def apply(self, labels: Labels) -> Labels:
        """Return the labels that may be published, with the values of redacted labels replaced."""
        published = {}
        for key, value in sorted(labels.items()):
            keep, redact = self._decisions.get(key) or self._decide(key)
            if keep:
                published[key] = REDACTED if redact else value
        return published

    def _decide(self, key: str) -> tuple[bool, bool]:
        keep = key in self._exact_keys or bool(self._include.match(key) and not self._exclude.match(key))
        if len(self._decisions) >= _MAX_CACHED_DECISIONS:
            self._decisions.clear()
        decision = self._decisions[key] = (keep, keep and bool(self._redact.match(key)))
        return decision


def filter_labels(metadata: Metadata, rules: LabelRules) -> Metadata:
    """Return the metadata with only the labels that ``rules`` keep, whichever rules it was built with."""

    def apply(labels: Labels | None) -> Labels | None:
        return None if labels is None else rules.apply(labels)

    return replace(metadata, labels=apply(metadata.labels), pod_labels=apply(metadata.pod_labels))


def _compile_globs(globs: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """Compile globs into one pattern; an empty list matches nothing."""
    return re.compile("|".join(map(translate, globs)) or r"(?!)", flags)
