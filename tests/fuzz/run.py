"""Many cases: a tally by kind, and for each failure a script that stands alone.

python tests/fuzz/run.py --count 2000 --seed 0 --kinds ragged forces --out fuzz-failures
"""

import argparse
import inspect
import sys
import textwrap
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import judge  # noqa: E402
import kinds  # noqa: E402
import torch  # noqa: E402

HEAD = """from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

B = 4
"""
TAIL = """

KINDS = {{{kind!r}: {kind}}}
for line in judge({case!r}).items():
    print(*line)
"""
BAD = (judge.WRONG, judge.FOREIGN)


def script(case, verdicts):
    """The case with its kind, the oracle and the judge in one file."""
    said = "\n".join(f"{what}: {v}, {' '.join(d.split())}" for what, (v, d) in verdicts.items())
    heads = ("from dense import", "from kinds import")
    parts = [(HERE / f"{name}.py").read_text() for name in ("dense", "judge")]
    source = "\n".join(
        "\n".join(t for t in p.splitlines() if not t.startswith(heads)) for p in parts
    )
    source = source.replace("from __future__ import annotations\n", "")
    built = [kinds.randint, kinds.Of, kinds.smooth, kinds.KINDS[case.kind]]
    kind = "\n\n".join(textwrap.dedent(inspect.getsource(part)) for part in built)
    tail = TAIL.format(kind=case.kind, case=case)
    return f'"""{case}\n\n{said}\n"""\n\n{HEAD}\n\n{kind}\n\n{source}{tail}'


def answer(asked):
    """(case, verdicts), in a process of its own or here."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case, chance = asked
    return case, judge.judge(case, chance)


def answers(cases, jobs):
    if jobs == 1:
        yield from map(answer, cases)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(answer, cases, chunksize=20)


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--count", type=int, default=2000)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--kinds", nargs="*", default=list(kinds.KINDS), choices=list(kinds.KINDS))
    ask.add_argument("--chance", type=int, default=1, help="ask means of draws of each n-th case")
    ask.add_argument("--jobs", type=int, default=1)
    ask.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    said = ask.parse_args()
    warnings.simplefilter("ignore")
    tally = Counter()
    cases = [
        (judge.Case(said.kinds[n % len(said.kinds)], said.seed + n), n % said.chance == 0)
        for n in range(said.count)
    ]
    for case, verdicts in answers(cases, said.jobs):
        tally.update((case.kind, what, verdict) for what, (verdict, _) in verdicts.items())
        if any(verdict in BAD for verdict, _ in verdicts.values()):
            said.out.mkdir(parents=True, exist_ok=True)
            (said.out / f"{case.kind}_{case.seed}.py").write_text(script(case, verdicts))
    print(f"{'kind':18}{'asked':12}" + "".join(f"{v:>15}" for v in VERDICTS))
    for kind, what in sorted({(k, w) for k, w, _ in tally}):
        print(f"{kind:18}{what:12}" + "".join(f"{tally[kind, what, v]:15}" for v in VERDICTS))
    bad = sum(n for (_, _, verdict), n in tally.items() if verdict in BAD)
    print(
        f"{said.count} cases, {bad} wrong answers or foreign errors"
        + f"; scripts in {said.out}" * (bad > 0)
    )
    return int(bad > 0)


VERDICTS = (judge.RIGHT, judge.REFUSED, judge.WRONG, judge.FOREIGN)
if __name__ == "__main__":
    sys.exit(main())
