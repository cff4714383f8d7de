"""A slice of the fuzzer: every answer is the oracle's, or a refusal in one sentence.

`make fuzz ARGS="--count 20000 --seed 1"` asks many more.
"""

import pytest
from judge import FOREIGN, REFUSED, RIGHT, WRONG, Case, judge
from kinds import KINDS, ORDINARY

SEEDS = range(2)

# Kinds for which something is wrong or ends in another's error today: {kind: what is asked}. A kind
# whose failures are mended fails here until it is taken off this list, which must become empty.
OPEN: dict[str, set[str]] = {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_right_or_refused(kind):
    found = {(seed, what): v for seed in SEEDS for what, v in judge(Case(kind, seed)).items()}
    bad = {at: v for at, v in found.items() if v[0] in (WRONG, FOREIGN)}
    known = OPEN.get(kind, set())
    assert {what for _, what in bad} == known, bad
    if known:
        print(f"open: {kind}: {', '.join(sorted(known))}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind.__name__ for kind in ORDINARY])
def test_ordinary_models_are_not_refused(kind):
    verdicts = judge(Case(kind, 100))
    assert not {what: v for what, v in verdicts.items() if v[0] == REFUSED}
    assert any(v[0] == RIGHT for v in verdicts.values())
