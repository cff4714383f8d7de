"""Training: stacks against serial runs, runs against laws."""

import math
from dataclasses import replace

import pytest
import torch
from runs import DIGITS, SEEDS, assert_same, go, regression, run

from dither.errors import DitherError
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import MLP, DiagonalNet
from dither.lab.training import loop as training
from dither.lab.training.loop import Training, train
from dither.lab.training.optimiser import SGD, Adam, RMSprop
from dither.lab.training.watch import Accuracy, Loss, Objective, WeightNorms
from dither.noise import Additive, Multiplicative, Node, Weight
from dither.schedule import Until


def penalised(what: Run) -> Run:
    """A stack knows R for all its replicas together only."""
    return replace(what, watch=tuple(w for w in what.watch if not isinstance(w, Objective)))


# ------------------------------------------------------------------------- stacked is serial

CASES = {
    "plain": run(),
    "full batch": run(batch=None),
    "momentum": run(optimiser=SGD(0.05, momentum=0.9, weight_decay=0.01, nesterov=True)),
    "adam": run(optimiser=Adam(0.003)),
    "rmsprop": run(optimiser=RMSprop(0.001)),
    "rmsprop inside": run(optimiser=RMSprop(0.001, root="inside", weight_decay=0.01)),
    "cosine": run(schedule="cosine"),
    "own data": run(data=replace(DIGITS, subset_seed=None)),
    "regression": regression(),
    "diagonal": run(
        data=Data("planted"),
        model=DiagonalNet(10),
        loss="half_square",
        batch=None,
        optimiser=SGD(0.01),
    ),
    "additive": run(noise=Additive(0.1)),
    "on the input": run(noise={"input": Additive(0.3), "fc1": Additive(0.1)}),
    "multiplicative": regression(noise=Multiplicative(0.2), optimiser=Adam(0.003)),
    "node": run(noise={"fc0": Node(3.0), "fc2": Node(1.0)}),
    "schedule": run(noise=Additive(Until(0.2, 10))),
    "weight": run(noise=Weight(0.05)),
    "weight, in turn": run(noise=Weight(0.05), draw="cycle", by="layer"),
    "weight, by lot": run(noise=Weight(0.05), draw="random"),
    "explicit": penalised(run(noise=Additive(0.1), objective="explicit")),
    "explicit node": penalised(
        run(noise={"fc0": Node(3.0)}, objective="explicit", optimiser=Adam(0.003))
    ),
    "explicit weight": regression(noise=Weight(0.05), draw="all", objective="explicit"),
    "explicit, own data": penalised(regression(noise=Additive(0.1), objective="explicit")),
    "sampled": penalised(run(noise=Additive(0.1), objective="sampled")),
    "sampled weight": regression(noise=Weight(0.05), draw="all", objective="sampled"),
}


SERIAL = [CASES[name] for name in ("weight, by lot", "explicit weight", "sampled weight")]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stack_trains_as_its_replicas_do_alone(case, monkeypatch):
    programs, init = [], Training.__init__
    monkeypatch.setattr(
        Training, "__init__", lambda self, *a: (programs.append(a), init(self, *a))[1]
    )
    together = go(case)
    assert len(programs) == (3 if case in SERIAL else 1)
    monkeypatch.setattr(Run, "stacked", property(lambda self: False))
    assert_same(together, go(case), rtol=2e-3 if isinstance(case.optimiser, RMSprop) else 3e-4)


def test_results_do_not_depend_on_the_company_or_the_world():
    case = run(noise=Additive(0.1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone = go(case, seeds=(7,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert alone == go(case, seeds=(7,))
    assert_same(alone, {7: go(case, seeds=(1, 7, 3, 4))[7]}, rtol=3e-4)


# ------------------------------------------------------------------------------ the training


def test_gradient_descent_on_least_squares_is_its_recursion():
    case = run(
        data=Data("planted", noise=0.3),
        model=MLP((10, 1), bias=False),
        loss="half_square",
        batch=None,
        optimiser=SGD(0.1),
        watch=(Loss("train", every=1), WeightNorms(every=1)),
    )
    t, theta = (
        case.data.load(4),
        case.model.build(4).get_submodule("fc0").weight.detach().double().T,
    )
    x, y, n = t.x_train.double(), t.y_train.double(), len(t.x_train)
    rows = go(case, seeds=(4,))[4]
    for step in range(21):
        loss = 0.5 * (x @ theta - y).square().sum().item() / n
        assert rows[step, "loss/train"] == pytest.approx(loss, rel=1e-4)
        assert rows[step, "norm/fc0.weight"] == pytest.approx(theta.norm().item(), rel=1e-5)
        theta = theta - 0.1 * x.T @ (x @ theta - y) / n


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own():
    stack = Training(run(), SEEDS, True, "cpu")
    x, y = stack.data.x_train, stack.data.y_train
    orders = []
    for _ in range(2):
        batches = list(stack.batches())
        assert [b.shape for b, _ in batches] == [(3, 25, 784), (3, 25, 784), (3, 10, 784)]
        seen = torch.cat([b for b, _ in batches], 1)
        index = torch.cdist(seen.double(), x.double()).argmin(-1)  # [S, n]
        assert torch.equal(index.sort(1).values, torch.arange(60).expand(3, 60))
        assert torch.equal(torch.cat([b for _, b in batches], 1), y[index])
        orders += list(index)
    assert len({tuple(order.tolist()) for order in orders}) == 6  # three seeds, two epochs


def test_cosine_anneals_the_learning_rate_to_zero():
    one = Training(run(schedule="cosine", steps=8, watch=()), (0,), False, "cpu")
    rates, descend = [], one.descend
    one.descend = lambda x, y: (descend(x, y), rates.append(one.optimiser.param_groups[0]["lr"]))[0]  # type: ignore
    one(training._Part(Silent(), 0, 1))
    expected = [0.1 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert rates == pytest.approx(expected)


def test_the_objective_without_noise_is_the_loss_before_the_step():
    rows = go(regression(watch=(Objective(every=1), Loss("train", every=1))))[2]
    assert (0, "objective") not in rows
    for step in range(20):
        assert rows[step + 1, "objective"] == pytest.approx(rows[step, "loss/train"], rel=1e-4)


def test_nodes_are_trained():
    rows = go(run(noise={"fc0": Node(20.0)}))[2]
    first, last = rows[0, "node/fc0:out"], rows[20, "node/fc0:out"]
    assert abs(last / first - 1) > 0.01


def test_a_noise_of_no_size_is_no_noise():
    assert_same(go(run()), go(run(noise=Additive(0.0))), rtol=0)


def test_explicit_adds_what_the_noise_costs_on_average():
    data = Data("sinusoids", train=2000)
    quiet = regression(data=data, noise=Additive(0.05), objective="explicit", optimiser=SGD(1e-9))
    quiet = replace(quiet, steps=1, watch=(Objective(1),))
    plain = replace(quiet, objective="noise", noise=None)
    loss, penalised = (go(case, seeds=(0,))[0] for case in (plain, quiet))
    noisy = replace(quiet, objective="noise", steps=1000)
    objective = torch.tensor([v for v in go(noisy, seeds=(0,))[0].values()])
    mean, sem = objective.mean().item(), objective.std().item() / len(objective) ** 0.5
    R = penalised[1, "objective"] - loss[1, "objective"]
    assert R > 0
    # the rest of the second order is a tenth of R here; without R the mean would be R off
    assert abs(mean - penalised[1, "objective"]) < 0.3 * R + 5 * sem
    assert sem < 0.1 * R


# ---------------------------------------------------------------------------------- endings


def test_divergence_is_marked_where_theory_puts_it_and_the_others_go_on(monkeypatch):
    data, eta = Data("planted", train=30, features=20), 0.75
    case = run(
        data=data,
        model=MLP((20, 1), bias=False),
        loss="half_square",
        batch=None,
        steps=300,
        optimiser=SGD(eta),
        watch=(WeightNorms(every=10), Loss(every=None)),
    )
    seeds = (1, 3, 2)
    expected = set()
    for seed in seeds:
        x = data.load(seed).x_train.double()
        if eta * torch.linalg.eigvalsh(x.T @ x / len(x)).max() > 2:  # GD on least squares diverges
            expected.add(seed)
    assert 0 < len(expected) < len(seeds)
    together = go(case, seeds)
    monkeypatch.setattr(Run, "stacked", property(lambda self: False))
    alone = go(case, seeds)
    for seed in seeds:
        marks = [[key for key in rows[seed] if key[1] == "diverged"] for rows in (together, alone)]
        assert [len(m) for m in marks] == [int(seed in expected)] * 2
        if seed in expected:
            (a, _), (b, _) = marks[0][0], marks[1][0]
            assert abs(a - b) <= 1  # overflow, up to rounding
            assert together[seed][a, "diverged"] == a == max(step for step, _ in together[seed])
            assert all(math.isfinite(value) for value in together[seed].values())
        else:
            assert together[seed][300, "loss/train"] == pytest.approx(
                alone[seed][300, "loss/train"], abs=1e-6
            )


def test_the_mark_is_at_the_first_loss_that_is_not_finite():
    case = run(data=Data("planted"), model=MLP((10, 1)), loss="half_square", batch=None)
    case = replace(case, optimiser=SGD(2.0), steps=300)
    watched, unwatched = (
        go(replace(case, watch=w), seeds=(0,))[0] for w in ((Objective(every=1),), ())
    )
    (step, _), *_ = unwatched
    assert unwatched == {(step, "diverged"): step}
    finite = [t for t, quantity in watched if quantity == "objective"]
    assert finite == list(range(1, int(step)))
    assert watched[step, "diverged"] == step


@pytest.mark.parametrize("objective", ["explicit", "sampled"])
def test_divergence_under_a_penalty_takes_no_other_replica_along(objective, monkeypatch):
    data = Data("planted", train=30, features=20)
    case = run(
        data=data,
        model=MLP((20, 1), bias=False),
        loss="half_square",
        batch=None,
        steps=300,
        optimiser=SGD(0.75),
        watch=(Loss(every=None),),
        objective=objective,
        noise=Additive(1e-3),
    )
    together = go(case, (1, 3, 2))
    monkeypatch.setattr(Run, "stacked", property(lambda self: False))
    alone = go(case, (1, 3, 2))
    ends = [
        {s: max(t for t, q in rows[s]) for s in rows if any(q == "diverged" for _, q in rows[s])}
        for rows in (together, alone)
    ]
    assert 0 < len(ends[0]) < 3
    assert ends[0].keys() == ends[1].keys()
    assert all(abs(ends[0][s] - ends[1][s]) <= 1 for s in ends[0])


@pytest.mark.parametrize("stacked", [True, False])
def test_training_stops_at_the_accuracy_asked_for(stacked, monkeypatch):
    monkeypatch.setattr(Run, "stacked", property(lambda self: stacked))
    watch = (Accuracy("train"), Loss("test", every=None))
    case = run(optimiser=SGD(0.05), steps=None, epochs=60, watch=watch)
    whole, stopped = go(case), go(replace(case, stop=0.9))
    ends = set()
    for seed in SEEDS:
        accuracy = {t: v for (t, q), v in whole[seed].items() if q == "accuracy/train" and t}
        end = min(t for t, v in accuracy.items() if v >= 0.9)
        ends.add(end)
        assert stopped[seed][end, "stopped"] == end / 3  # the epoch
        assert max(t for t, _ in stopped[seed]) == end
        assert (end, "loss/test") in stopped[seed]  # a last look of every watch
        assert stopped[seed][end, "accuracy/train"] == accuracy[end]
    assert len(ends) > 1  # or the test would not see that replicas stop one by one


def test_progress_reaches_its_total_and_never_goes_back(monkeypatch):
    class Heard:
        def update(self, done, total):
            said.append((done, total))

    monkeypatch.setattr(training, "BEAT", 0.0)
    for stacked, total in ((True, 20), (False, 60)):
        said = []
        monkeypatch.setattr(Run, "stacked", property(lambda self, stacked=stacked: stacked))
        train(run(), SEEDS, Heard())
        done = [d for d, _ in said]
        assert done == sorted(done)
        assert said[-1] == (total, total)
        assert {t for _, t in said} == {total}


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(DitherError, match="schedule 'linear' is none of constant, cosine"):
        go(run(schedule="linear"))


def test_the_penalty_follows_the_schedule_of_its_noise():
    noise = Additive(Until(0.5, 5))
    watch = (Objective(every=1), Loss("train", every=1))
    rows = go(regression(noise=noise, objective="explicit", steps=10, watch=watch), seeds=(0,))[0]
    R = [rows[t + 1, "objective"] - rows[t, "loss/train"] for t in range(10)]
    assert min(R[:5]) > 1e-3
    assert R[5:] == pytest.approx([0] * 5, abs=1e-5)
