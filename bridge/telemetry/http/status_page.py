"""The status page, for browsers. Pure.

Most of its text is untrusted, because users who can start a container choose its names and labels. The type decides:
what is not an ``_Html`` is text, and is escaped wherever it becomes a part of one. The linter (S704) lets only literals
be marked as HTML, and the content security policy prevents the browser from loading or running anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import markupsafe

from bridge.core.container_metadata import display_id
from bridge.core.container_state import Transition
from bridge.core.record_encoder import SnapshotCoverage, rfc3339
from bridge.core.time import SECOND
from bridge.telemetry.counters import SnapshotSummary
from bridge.telemetry.http.json_documents import group_by_project
from bridge.telemetry.safe_text import printable
from bridge.telemetry.status import SinkStatus, Status, evaluate

MAX_CONTAINERS = 1000  # on the page; /containers returns all
REFRESH_SECONDS = 10
_MAX_TEXT_LENGTH = 200  # characters of a name, which could otherwise fill the page
_MINUTE, _HOUR = 60, 3600
_KIB = 1024
_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --quiet: #5a6675; --line: #d9dfe7; --back: #f6f8fb; --card: #fff;
  --good: #18794e; --fair: #9a6700; --bad: #c62a2f }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9f0; --quiet: #98a4b3; --line: #2d3743; --back: #11161d;
  --card: #19202a; --good: #4cc38a; --fair: #e2b340; --bad: #ff7a7f } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem; margin-bottom: 1rem }
h1 { font-size: 1.4rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 0 0 .5rem }
h3 { font-size: .95rem; margin: 1rem 0 .25rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem;
  margin-bottom: 1rem; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; font-size: .82rem; color: var(--quiet) }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
tr:last-child td { border-bottom: 0 }
td { overflow-wrap: anywhere } .n { text-align: right; white-space: nowrap } .t { white-space: nowrap }
code { font: .85em ui-monospace, "DejaVu Sans Mono", monospace }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 }
dt { color: var(--quiet) }
dd { margin: 0; overflow-wrap: anywhere }
.fixed { table-layout: fixed } .fixed th:nth-child(3), .fixed th:nth-child(6) { width: 6rem }
.fixed th:nth-child(4) { width: 30% }
ul { margin: 0; padding-left: 1.2rem } .quiet { color: var(--quiet) }
.good { color: var(--good) } .fair { color: var(--fair) } .bad { color: var(--bad) } b { font-weight: 600 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Html(markupsafe.Markup):
    """HTML; its ``join``, ``format`` and ``+`` escape all text.

    Text that is too long is truncated, and control, invisible and direction-changing characters become visible.
    """

    __slots__ = ()

    @classmethod
    def escape(cls, value: object, /) -> Self:
        if isinstance(value, cls):
            return value
        text = str(value)
        text = printable(text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}…")
        return str.__new__(cls, markupsafe.escape(text))

    def join(self, parts: Iterable[str], /) -> Self:  # type: ignore[override] # not of other objects
        # Most parts are HTML, and a call for each would take most of the time of the page.
        escape = type(self).escape
        return type(self)(str.join(self, [part if type(part) is _Html else escape(part) for part in parts]))


_NOTHING, _CODE_START, _CODE_END = _Html(""), _Html("<code>"), _Html("</code>")


def render(status: Status, containers: Sequence[Transition], now: int) -> str:
    """Return the page; ``now`` is the wall clock time in nanoseconds."""
    return str(_Html("").join(_page(status, containers, now)))


def _page(status: Status, containers: Sequence[Transition], now: int) -> Iterator[_Html]:
    yield _Html(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>whalebridge: {host}</title><style>{style}</style></head><body>"
    ).format(refresh=REFRESH_SECONDS, host=status.host, style=_Html(_STYLE))  # noqa: S704 (a constant)
    yield from _headline(status, now)
    yield from _containerd(status)
    yield from _sinks(status.sinks)
    yield from _containers(containers)
    yield from _snapshots(status.counters.recent_snapshots)
    yield _Html(
        '<p class="quiet"><a href="containers">containers</a> · <a href="readyz">readyz</a> · '
        '<a href="metrics">metrics</a></p></body></html>'
    )


def _headline(status: Status, now: int) -> Iterator[_Html]:
    evaluated = evaluate(status)
    color, state = ("good", "ready") if evaluated.ready else ("bad", "not ready")
    if evaluated.ready and evaluated.degraded_reasons:
        color, state = "fair", "ready, but degraded"
    yield _Html(
        '<header><h1>whalebridge</h1><span>{host}</span><b class="{color}" id="status">{state}</b>'
        '<span class="quiet">{time}</span></header>'
    ).format(host=status.host, color=color, state=state, time=_format_time(now))
    if evaluated.reasons or evaluated.degraded_reasons:
        yield _Html("<section><ul>")
        yield from (_Html('<li class="bad">{}</li>').format(reason) for reason in evaluated.reasons)
        yield from (_Html('<li class="fair">{}</li>').format(reason) for reason in evaluated.degraded_reasons)
        yield _Html("</ul></section>")


def _containerd(status: Status) -> Iterator[_Html]:
    engine = status.engine
    last_verified = "never" if status.watermark_age is None else f"{_format_duration(status.watermark_age)} ago"
    facts = [
        ("engine", "not connected" if engine is None else f"containerd {engine.version}"),
        ("socket", _code(engine.api) if engine else ""),
        ("engine id", _code(engine.id) if engine else ""),
        ("namespaces", _Html(", ").join(map(_code, status.include))),
        ("excluded", _Html(", ").join(map(_code, status.exclude))),
        ("last verified", last_verified),
        ("containers", f"{status.running} running, {status.paused} paused"),
    ]
    yield _Html("<section><h2>Containerd</h2><dl>")
    yield from (_Html("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in facts if value)
    yield _Html("</dl></section>")


def _sinks(sinks: Iterable[SinkStatus]) -> Iterator[_Html]:
    rows = [
        [
            _Html('<span class="t">{}</span>').format(sink.name),
            _Html('<b class="{}">{}</b> {}').format(_color_class(sink.state), sink.state, sink.last_error or ""),
            str(sink.lag.records),
            _format_size(sink.lag.size),
            _format_duration(sink.lag.oldest_age) if sink.lag.records else "",
            str(sink.published),
            str(sink.lag.dropped + sink.rejected),
        ]
        for sink in sinks
    ]
    yield _Html("<section><h2>Sinks</h2>")
    yield _table(["sink", "state", "backlog#", "bytes#", "oldest#", "published#", "lost#"], rows)
    yield _Html("</section>")


def _containers(containers: Sequence[Transition]) -> Iterator[_Html]:
    yield _Html('<section><h2>Containers <span class="quiet">{}</span></h2>').format(len(containers))
    remaining = MAX_CONTAINERS
    for project, members in sorted(group_by_project(containers).items()):
        if not remaining:
            break
        shown = sorted(members, key=_name)[:remaining]
        remaining -= len(shown)
        title = project or _Html('<span class="quiet">no project</span>')
        yield _Html('<h3>{} <span class="quiet">{}</span></h3>').format(title, len(members))
        headers = ["name", "id", "state", "image", "service or pod", "pid#"]
        yield _table(headers, map(_container_row, shown), "fixed")
    if len(containers) > MAX_CONTAINERS:
        hidden = len(containers) - MAX_CONTAINERS
        yield _Html(
            '<p class="quiet">{} more are not shown; <a href="containers">containers</a> lists all.</p>'
        ).format(hidden)
    yield _Html("</section>")


def _container_row(container: Transition) -> list[str]:
    metadata = container.metadata
    image = service = ""
    if metadata is not None:
        image, service = metadata.image, metadata.service
        if metadata.pod is not None:
            service = f"{metadata.pod.namespace}/{metadata.pod.name}"
    return [
        _name(container),
        _code(display_id(container.key)),
        _Html('<span class="fair">paused</span>') if container.paused else "running",
        _code(image),
        service,
        str(container.pid),
    ]


def _snapshots(summaries: Sequence[SnapshotSummary]) -> Iterator[_Html]:
    rows = [
        [
            _Html('<span class="t">{}</span>').format(_format_time(summary.at)),
            summary.gap.reason,
            _format_time(summary.gap.since) if summary.gap.since is not None else "unknown",
            _format_time(summary.gap.until) if summary.gap.until is not None else "",
            str(summary.containers),
            str(summary.inferred),
            _format_coverage(summary.coverage),
        ]
        for summary in reversed(summaries)
    ]
    yield _Html(
        '<section><h2>Recent snapshots</h2><p class="quiet">Events between since and until may have been missed; '
        "inferred counts the transitions that were found by reconciliation.</p>"
    )
    yield _table(["time", "reason", "since", "until", "containers#", "inferred#", "notes"], rows)
    yield _Html("</section>")


def _format_coverage(coverage: SnapshotCoverage) -> str:
    return ", ".join([*(f"failed: {name}" for name in coverage.failed), *["partial"] * coverage.partial])


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "") -> _Html:
    """Return a table; a header that ends with # is that of a column of numbers."""
    attributes = [_Html(' class="n"') if header.endswith("#") else _Html("") for header in headers]
    head = [
        _Html("<th{}>{}</th>").format(attr, header.rstrip("#"))
        for header, attr in zip(headers, attributes, strict=True)
    ]
    start_tags = [_Html("<td{}>").format(attr) for attr in attributes]
    end_tag, row_start, row_end = _Html("</td>"), _Html("<tr>"), _Html("</tr>")
    body: list[str] = []
    for row in rows:
        body.append(row_start)
        for start_tag, cell in zip(start_tags, row, strict=True):
            body += (start_tag, cell, end_tag)
        body.append(row_end)
    return _Html('<table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
        class_, _Html("").join(head), _Html("").join(body)
    )


def _name(container: Transition) -> str:
    return container.metadata.name if container.metadata is not None else container.key.id


def _code(text: str) -> _Html:
    return _NOTHING.join((_CODE_START, text, _CODE_END)) if text else _NOTHING


def _color_class(state: str) -> str:
    return {"ok": "good", "failing": "bad"}.get(state, "fair")


def _format_time(at: int) -> str:
    """Format a wall clock time, truncated to seconds."""
    return rfc3339(at - at % SECOND).replace("T", " ")


def _format_duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def _format_size(size: int) -> str:
    return f"{size / _KIB:.1f} KiB" if size < _KIB * _KIB else f"{size / _KIB / _KIB:.1f} MiB"
