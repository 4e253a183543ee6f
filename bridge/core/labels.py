"""Which labels may be stored and published: include, exclude and redact, by globs on the label's key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from msgspec.structs import replace

from bridge.core.model import Labels, Metadata

REDACTED = "[redacted]"
_WILDCARDS = frozenset("*?[")
_VERDICTS_KEPT = 10_000  # keys are few on a node; a hostile one that invents them must not fill the memory


class LabelRules:
    """Decides per key, by globs; case does not matter to ``redact``.

    A label is kept if a glob of ``include`` fits its key and none of ``exclude`` does; a key that ``include`` names
    in full, without a wildcard, is kept whatever ``exclude`` says. Of a kept label that ``redact`` fits, the value is
    replaced. The rules themselves are settings (``config.settings.LabelsSettings``).
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str], redact: Iterable[str]) -> None:
        include = tuple(include)
        self._named = frozenset(glob for glob in include if not _WILDCARDS & set(glob))
        self._include = _any_of(include)
        self._exclude = _any_of(exclude)
        self._redact = _any_of(redact, re.IGNORECASE)
        self._verdicts: dict[str, tuple[bool, bool]] = {}

    @classmethod
    def keep_all(cls) -> LabelRules:
        """Rules that let every label through as it is, for use as a library."""
        return cls(include=("*",), exclude=(), redact=())

    def apply(self, labels: Labels) -> Labels:
        """Return the labels that may be told, redacted where the rules say so."""
        told = {}
        for key, value in sorted(labels.items()):
            keep, redact = self._verdicts.get(key) or self._judge(key)
            if keep:
                told[key] = REDACTED if redact else value
        return told

    def _judge(self, key: str) -> tuple[bool, bool]:
        keep = key in self._named or bool(self._include.match(key) and not self._exclude.match(key))
        if len(self._verdicts) >= _VERDICTS_KEPT:
            self._verdicts.clear()
        verdict = self._verdicts[key] = (keep, keep and bool(self._redact.match(key)))
        return verdict


def ruled(metadata: Metadata, rules: LabelRules) -> Metadata:
    """Return a record with the labels that may be told under other rules than those that it was read under."""

    def apply(labels: Labels | None) -> Labels | None:
        return None if labels is None else rules.apply(labels)

    return replace(metadata, labels=apply(metadata.labels), pod_labels=apply(metadata.pod_labels))


def _any_of(globs: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """Compile globs into one pattern; no globs fit nothing."""
    return re.compile("|".join(map(translate, globs)) or r"(?!)", flags)
