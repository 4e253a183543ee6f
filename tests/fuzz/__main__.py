"""Run all fuzz targets on all cores, or one target with one input: `python -m tests.fuzz`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.fuzz.engine import Finding, Result, check, fuzz, save
from tests.fuzz.targets import TARGETS

FINDINGS = Path("build/fuzz")


def main() -> int:
    """Fuzz, or replay an input; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, metavar="TARGET", help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="run the target with this input only")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="duration of the run (default: 60)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="repeat the inputs of an earlier run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: all cores)")
    options = parser.parse_args()
    if options.file:
        return replay(options.target, options.file)
    names = [options.target] if options.target else list(TARGETS)
    seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    return _run(names, seed, options.seconds / len(names), options.jobs)


def replay(name: str, path: Path) -> int:
    """Run a target with one input, and print the finding; return 1 if there is one."""
    finding = check(TARGETS[name], path.read_bytes())
    print(finding.error if finding else "no finding")
    return 1 if finding else 0


def _run(names: Iterable[str], seed: int, seconds: float, jobs: int) -> int:
    print(f"seed {seed}, {jobs} processes, {seconds:.1f} s for each target", flush=True)
    total, found = 0, 0
    with ProcessPoolExecutor(jobs) as pool:
        for name in names:
            results = list(pool.map(_fuzz_one, [name] * jobs, range(seed, seed + jobs), [seconds] * jobs))
            count = sum(result.inputs for result in results)
            rate = count / sum(result.cpu_seconds for result in results)
            findings = _distinct(results)
            print(f"{name:16} {count:11,} inputs {rate:9,.0f} per CPU second {len(findings):3} findings", flush=True)
            for finding in findings:
                path = save(name, finding, FINDINGS)
                print(f"  {finding.place}: {finding.error.splitlines()[-1][:200]}")
                print(f"  replay: python -m tests.fuzz {name} {path}", flush=True)
            total, found = total + count, found + len(findings)
    print(f"{'total':16} {total:11,} inputs, {found} findings")
    return 1 if found else 0


def _fuzz_one(name: str, seed: int, seconds: float) -> Result:
    return fuzz(name, TARGETS[name], seed=seed, seconds=seconds)


def _distinct(results: Iterable[Result]) -> list[Finding]:
    by_place = defaultdict[str, list[Finding]](list)
    for result in results:
        for finding in result.findings:
            by_place[finding.place].append(finding)
    return [min(findings, key=lambda finding: len(finding.data)) for findings in by_place.values()]


if __name__ == "__main__":
    sys.exit(main())
