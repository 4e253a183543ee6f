"""Run simulated histories: ``python -m tests.simulator --seeds 1000``, or ``--seed 7`` to see what happens in one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulator.history import run_history, trace_hash
from tests.simulator.promises import check_promises


def find_broken_promises(seed: int, *, steps: int = 40) -> list[str]:
    """Run the history of a seed; return the promises that were broken."""
    return check_promises(run_history(seed, steps=steps))


def replay_command(seed: int) -> str:
    """Return the command that shows the history of a seed."""
    return f"python -m tests.simulator --seed {seed}"


def run_seeds(seeds: range, *, steps: int) -> Iterable[tuple[int, list[str]]]:
    """Run histories on all cores; return the seeds of those that broke promises, and which."""
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(find_broken_promises, steps=steps), seeds, chunksize=10)
        yield from ((seed, broken) for seed, broken in zip(seeds, results, strict=True) if broken)


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="show the history of this seed")
    parser.add_argument("--seeds", type=int, default=500, help="how many histories to run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="operations in a history (%(default)s)")
    args = parser.parse_args()
    if args.seed is not None:
        world = run_history(args.seed, steps=args.steps)
        print(*world.trace, *(broken := check_promises(world)), f"trace: {trace_hash(world)}", sep="\n")
        return bool(broken)
    started, seeds = time.monotonic(), range(args.first, args.first + args.seeds)
    failed = 0
    for seed, broken in run_seeds(seeds, steps=args.steps):
        failed += 1
        print(f"{replay_command(seed)}", *broken, sep="\n  ")
    print(f"{len(seeds)} histories in {time.monotonic() - started:.0f} s, {failed} with broken promises")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
