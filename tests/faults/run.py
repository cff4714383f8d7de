"""Faults and hostile files, at random: a tally, and the seed of each case that broke a law.

python tests/faults/run.py --count 200 --seed 0 --kinds killed "disk full"
"""

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hostile
import kills
import world

ALL = {**kills.KINDS, **hostile.KINDS}


def case(kind: str, seed: int, home: Path) -> str:
    """The outcome of one case; "broken: …" if it is against the law."""
    try:
        return ALL[kind](world.empty(home), random.Random(f"{kind} {seed}"))
    except AssertionError as error:
        return f"broken: {error}"


def drawn(kinds: list[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Kinds in proportion to their shares, each with a seed."""
    shares = {**kills.SHARES, **hostile.SHARES}
    weights = [shares.get(kind, 1) for kind in kinds]
    chosen = random.Random(seed).choices(kinds, weights, k=count)
    return [(kind, seed + n) for n, kind in enumerate(chosen)]


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--count", type=int, default=100)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--kinds", nargs="*", default=list(ALL), choices=list(ALL))
    ask.add_argument("--each", action="store_true", help="print every case")
    said = ask.parse_args()
    tally: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="dither-faults-") as name:
        folder = Path(name)
        world.load()
        world.package(folder / "papers")
        if set(said.kinds) & set(kills.KINDS):
            kills.reference(world.empty(folder / "first"))
        for kind, seed in drawn(said.kinds, said.count, said.seed):
            outcome = case(kind, seed, folder / "case")
            if said.each or outcome.startswith("broken"):
                print(f"{kind}, seed {seed}: {outcome}", flush=True)
            tally[kind, outcome.partition(":")[0]] += 1
        world.empty(folder / "case")
    for (kind, outcome), n in sorted(tally.items()):
        print(f"{kind:15}{outcome:20}{n:8}")
    broken = sum(n for (_, outcome), n in tally.items() if outcome == "broken")
    print(f"{said.count} cases, {broken} against the law")
    return int(broken > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
