"""Runs fuzz targets, and reports what they find."""

from __future__ import annotations

import hashlib
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.mutation import Mutate, Mutator, mutate_bytes

CORPUS = Path(__file__).parent / "corpus"
_INPUTS_PER_CHECK = 64  # of the time
_HANG_SECONDS = 20  # of CPU time, for that many inputs
MAX_FINDINGS = 20  # of one run; a target that fails for most inputs says nothing new after that


class Target(NamedTuple):
    """What to fuzz.

    ``run`` raises an error if its input is a finding; it catches errors that are the right response to an invalid
    input. ``samples`` returns valid inputs, made by the encoders of the program itself where there are any.
    """

    run: Callable[[bytes], None]
    samples: Callable[[], Sequence[bytes]]
    tokens: Sequence[bytes] = ()
    mutate: Mutate = mutate_bytes


class HangError(BaseException):
    """An input takes too long; no code under test catches this error."""


class Finding(NamedTuple):
    """An input that made a target fail, and the traceback."""

    data: bytes
    error: str
    place: str
    """Type of the error, and the innermost line of code: findings with the same place have the same cause."""


class Result(NamedTuple):
    """Inputs and findings of a run, and the CPU time that it took."""

    inputs: int
    cpu_seconds: float
    findings: list[Finding]


def corpus(name: str) -> dict[Path, bytes]:
    """Return the stored inputs of a target."""
    return {path: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}


def fuzz(
    name: str,
    target: Target,
    *,
    seed: int,
    inputs: int = 1 << 62,
    seconds: float = float("inf"),
    max_findings: int = MAX_FINDINGS,
) -> Result:
    """Run a target with its samples and stored inputs, and with mutations of them, until a limit is reached."""
    samples = [*target.samples(), *corpus(name).values()]
    generated = Mutator(seed, samples, target.tokens, target.mutate).inputs()
    started, cpu_started = time.monotonic(), time.process_time()
    count, findings = 0, dict[str, Finding]()
    with _raise_on_hang() as restart_timer:
        for count, data in enumerate(_limited(generated, samples, inputs), 1):
            if count % _INPUTS_PER_CHECK == 0:
                restart_timer()
                if time.monotonic() - started > seconds:
                    break
            if (finding := check(target, data)) is not None:
                known = findings.setdefault(finding.place, finding)
                if len(data) < len(known.data):
                    findings[finding.place] = finding
                if len(findings) == max_findings:
                    break
    return Result(count, time.process_time() - cpu_started, list(findings.values()))


def check(target: Target, data: bytes) -> Finding | None:
    """Run a target with one input; return the finding, if it is one."""
    try:
        target.run(data)
    except (Exception, HangError) as error:  # noqa: BLE001 (any error is a finding)
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(innermost.filename).name}:{innermost.lineno}"
        return Finding(data, traceback.format_exc(), place)
    return None


def save(name: str, finding: Finding, directory: Path) -> Path:
    """Write the input of a finding to a file, whose name depends on the content only."""
    path = directory / name / hashlib.sha256(finding.data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    return path


def _limited(generated: Iterator[bytes], samples: Iterable[bytes], limit: int) -> Iterator[bytes]:
    yield from samples
    for _, data in zip(range(limit), generated, strict=False):
        yield data


@contextmanager
def _raise_on_hang() -> Iterator[Callable[[], None]]:
    """Raise an error in a target that takes too much CPU time; the function that is yielded restarts the timer."""

    def raise_error(_: int, __: object) -> None:
        raise HangError(f"no end within {_HANG_SECONDS} s")

    def start() -> None:
        signal.setitimer(signal.ITIMER_PROF, _HANG_SECONDS)

    before = signal.signal(signal.SIGPROF, raise_error)  # SIGALRM is pytest-timeout's
    start()
    try:
        yield start
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
