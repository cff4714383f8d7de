"""Noise after the step: what it draws, and that Anti-PGD is weight noise in other variables."""

import math

import pytest
import torch
from nets import plain
from torch import nn

import dither
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import MLP
from dither.lab.runs.execute import execute
from dither.lab.training.optimiser import SGD, AntiPGD, Langevin
from dither.lab.training.watch import WeightNorms
from dither.schedule import Until

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
EVERY = {"langevin": dither.langevin, "anti_pgd": dither.anti_pgd}
every = pytest.mark.parametrize("hang", EVERY.values(), ids=EVERY)


def flat(*shape: int) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter at 0 on which no gradient acts."""
    w = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))
    w.grad = torch.zeros_like(w)
    return w, torch.optim.SGD([w], 0.1)


def steps(model, optimiser, n):
    for _ in range(n):
        optimiser.zero_grad()
        model(X).square().sum().backward()
        optimiser.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


# --------------------------------------------------------------------------------------- laws


def test_langevin_walks_and_anti_pgd_stays():
    for hang, variance in ((dither.langevin, 9 * 0.25), (dither.anti_pgd, 0.25)):
        w, optimiser = flat(40_000)
        hang(optimiser, 0.5, seed=0)
        for _ in range(9):
            optimiser.step()
        z = (w.var().item() / variance - 1) / math.sqrt(2 / w.numel())
        assert abs(z) < 4.5  # seven in a million runs would fail; the seed is fixed


def test_increments_of_anti_pgd_are_anti_correlated():
    w, optimiser = flat(40_000)
    dither.anti_pgd(optimiser, 1.0, seed=0)
    seen = [w.detach().clone()]
    for _ in range(4):
        optimiser.step()
        seen.append(w.detach().clone())
    d = torch.stack(seen).diff(dim=0)[1:]
    correlation = torch.corrcoef(d)
    bound = 4.5 / math.sqrt(w.numel())
    assert abs(correlation[0, 1].item() + 0.5) < bound
    assert abs(correlation[0, 2].item()) < bound


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_anti_pgd_is_weight_noise_in_the_variables_without_their_noise(momentum):
    model = plain(dtype=torch.float64)
    other = plain(dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=momentum)
    anti = dither.anti_pgd(optimiser, 0.1, seed=0)
    steps(model, optimiser, 5)

    second = torch.optim.SGD(other.parameters(), 0.01, momentum=momentum)
    for t in range(5):  # the perturbed gradient, by hand
        second.zero_grad()
        z = weights(other)
        with torch.no_grad():
            for i, p in enumerate(other.parameters()):
                p += anti.xi(i, p, t)
        other(X).square().sum().backward()
        with torch.no_grad():
            for p, clean in zip(other.parameters(), z, strict=True):
                p.copy_(clean)
        second.step()
    with anti.without():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-13)
    assert not torch.allclose(model[0].weight, other[0].weight)


def test_a_schedule_that_ends_takes_the_carried_noise_off():
    model = plain(dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), 1e-300)  # no descent, only noise
    start = weights(model)
    dither.anti_pgd(optimiser, Until(0.1, 3), seed=0)
    steps(model, optimiser, 3)
    assert not torch.allclose(model[0].weight, start[0])
    steps(model, optimiser, 1)
    for p, q in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-14)


# ----------------------------------------------------------------------------------- promises


@every
def test_draws_are_a_function_of_the_seed(hang):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        model = plain(dtype=torch.float64)
        optimiser = torch.optim.SGD(model.parameters(), 0.01)
        hang(optimiser, 0.1, seed=seed)
        steps(model, optimiser, 3)
        found.append(weights(model)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@every
def test_a_resumed_run_goes_on_as_if_never_stopped(hang):
    model = plain(dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    noise = hang(optimiser, 0.1, seed=0)
    steps(model, optimiser, 2)
    again = plain(dtype=torch.float64)
    again.load_state_dict(model.state_dict())
    second = torch.optim.SGD(again.parameters(), 0.01)
    hang(second, 0.1, seed=7).load_state_dict(noise.state_dict())
    steps(model, optimiser, 2)
    steps(again, second, 2)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@every
def test_remove_ends_it(hang):
    w, optimiser = flat(3)
    noise = hang(optimiser, 0.1, seed=0)
    optimiser.step()
    noise.remove()
    after = w.detach().clone()
    optimiser.step()
    noise.remove()  # harmless
    assert torch.equal(w, after)
    assert bool(w.any()) == (hang is dither.langevin)


@every
def test_bad_sigma_is_a_sentence(hang):
    with pytest.raises(dither.DitherError, match="finite and ≥ 0"):
        hang(flat(1)[1], -0.1)


# ------------------------------------------------------------------------------ the laboratory


@pytest.mark.parametrize("spec", [Langevin, AntiPGD])
def test_a_stack_draws_what_its_replicas_draw_alone(spec):
    run = Run(
        data=Data("planted", train=10, features=4),
        model=MLP((4, 5, 1), activation="linear"),
        optimiser=spec(SGD(0.01), 0.1),
        loss="half_square",
        steps=4,
        watch=(WeightNorms(),),
    )
    together = execute(run, [0, 1], Silent())
    for seed in (0, 1):
        alone = execute(run, [seed], Silent())[seed]
        for (step, name, value), (*where, other) in zip(alone, together[seed], strict=True):
            assert [step, name] == where
            assert value == pytest.approx(other, rel=1e-5)


def test_the_specs_say_what_they_are():
    a, b = Langevin(SGD(0.01), 0.1), AntiPGD(SGD(0.01), 0.1)
    assert a.lr == b.lr == 0.01
    with pytest.raises(dither.DitherError, match="finite and ≥ 0"):
        AntiPGD(SGD(0.01), -1.0)


# ----------------------------------------------------------------------- steps that are not plain


@every
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradscaler_skips_moves_nothing(hang, fused):
    w = nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.SGD([w], 0.1, fused=fused)
    after, scaler = hang(optimiser, 0.5, seed=0), torch.amp.GradScaler("cpu")
    scaler.scale((w * torch.inf).sum()).backward()
    scaler.step(optimiser)
    scaler.update()
    assert after.step == 0
    assert (w == 0).all()


def test_without_nests_and_remove_inside_it_ends_it():
    w, optimiser = flat(5)
    noise = dither.anti_pgd(optimiser, 0.5, seed=0)
    optimiser.step()
    carried = w.detach().clone()
    with noise.without():
        with noise.without():
            assert (w == 0).all()
        assert (w == 0).all()
    torch.testing.assert_close(w.detach(), carried)
    with noise.without():
        noise.remove()
    assert (w == 0).all()


def test_a_parameter_added_later_carries_its_own_noise_only():
    w, optimiser = flat(5)
    noise = dither.anti_pgd(optimiser, 0.5, seed=0)
    optimiser.step()
    late, _ = flat(5)
    optimiser.add_param_group({"params": [late]})
    optimiser.step()
    torch.testing.assert_close(late.detach(), noise.xi(1, late, 2))
    noise.remove()
    for p in (w, late):
        torch.testing.assert_close(p.detach(), torch.zeros_like(p))


@every
def test_a_list_of_seeds_needs_a_stack(hang):
    _, optimiser = flat(5)
    hang(optimiser, 0.5, seed=[0, 1])
    with pytest.raises(dither.DitherError, match="2 seeds are for a stack"):
        optimiser.step()


def test_noise_after_noise_is_refused():
    with pytest.raises(dither.DitherError, match="give the optimiser inside"):
        Langevin(AntiPGD(SGD(0.1), 0.1), 0.1)


@every
def test_noise_after_the_step_leaves_frozen_parameters_alone(hang):
    net = plain()
    net[0].requires_grad_(False)
    net[2].requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), 0.0)
    hung = hang(optimiser, 0.5, seed=0)
    net(X.float()).square().sum().backward()
    optimiser.step()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [False] * 4 + [True] * 2
    hung.remove()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: dither.langevin(plain(), 0.1), "optimiser .*got Sequential"),
        (lambda: dither.langevin(flat(2)[1], 0.1, seed="a"), "^seed is a whole number"),
    ],
)
def test_what_noise_after_the_step_needs_is_told(call, says):
    with pytest.raises(dither.DitherError, match=says):
        call()
