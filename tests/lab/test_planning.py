import itertools
import random

import pytest
from tasks import plain

from dither.lab import catalogue, planning
from dither.lab.planning import schedule
from dither.lab.runs.store import Store, frame


def best(hours, workers):
    """The shortest schedule: all ways to give jobs to workers."""
    return min(
        max(sum(h for h, w in zip(hours, given, strict=True) if w == at) for at in range(workers))
        for given in itertools.product(range(workers), repeat=len(hours))
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_bounds_of_list_scheduling(seed):
    """Graham 1966, 1969, against the best of all schedules."""
    rng = random.Random(seed)
    hours = [rng.choice([1, 2, 5, 11]) * rng.uniform(0.9, 1.1) for _ in range(rng.randint(1, 7))]
    for m in (1, 2, 3):
        listed, sorted_ = schedule(hours, m), schedule(sorted(hours, reverse=True), m)
        optimum, total = best(hours, m), sum(hours)
        for bound in listed.bounds.values():
            assert bound <= optimum * (1 + 1e-12)
        assert optimum <= listed.hours * (1 + 1e-12)
        assert listed.hours <= (total / m + (1 - 1 / m) * max(hours)) * (1 + 1e-12)
        assert listed.hours <= (2 - 1 / m) * optimum * (1 + 1e-12)
        assert sorted_.hours <= (4 / 3 - 1 / (3 * m)) * optimum * (1 + 1e-12)
        assert listed.idle == pytest.approx(1 - total / (m * listed.hours))


def test_grahams_bound_is_reached():
    """m (m − 1) jobs of 1 before one of m: 2 m − 1 hours, where m would do."""
    m = 4
    hours = [1.0] * (m * (m - 1)) + [float(m)]
    assert schedule(hours, m).hours == 2 * m - 1
    assert schedule(hours[::-1], m).hours == m == max(schedule(hours, m).bounds.values())


def test_nothing_to_do():
    assert (schedule([], 8).hours, schedule([], 8).idle) == (0, 0)


def test_costs_come_from_the_folder_or_from_the_figure(toy, tmp_path):
    """In the ratio of the quick times where they are known; a run of two figures counts once."""
    cost, quick = {"smoke": 60.0, "paper": 480.0}, {"steps": 9}
    toy(fig1=plain(cost=cost, quick=quick), fig2=plain(quick=quick, paper={"steps": 7}))
    one, two = (catalogue.find(name) for name in ("toy2024/fig1", "toy2024/fig2"))
    store = Store(tmp_path / "results")
    (first,) = planning.costs([one], "paper", store)
    assert first.runs == 8  # two labels, four seeds
    assert first.hours == [1.0] * 8  # 480 minutes of eight runs

    def took(scale, label, seconds):
        store.seal(one.at(scale)[label], 0, frame([(0, "value", 0)]), {"seconds": seconds})

    took("quick", "rate 0.1", 1)
    took("quick", "rate 0.5", 3)
    assert planning.costs([one], "paper", store)[0].hours == [0.5] * 4 + [1.5] * 4
    took("paper", "rate 0.1", 7200)
    assert planning.costs([one], "paper", store)[0].hours == [2.0] * 4 + [1.5] * 4

    assert one.at("smoke") == two.at("smoke")
    listed = planning.costs([two, one], "smoke", store)
    assert [c.figure.name for c in listed] == ["toy2024/fig1", "toy2024/fig2"]  # costless last
    assert [(c.runs, c.shared) for c in listed] == [(4, 0), (0, 4)]
    (unknown,) = planning.costs([two], "paper", store)
    assert all(hour != hour for hour in unknown.hours)
