"""Corruption and attack curves: formulas, bounds, noise, and what they leave behind."""

import math

import pytest
import torch
from torch import nn

import dither
from dither.errors import DitherError
from dither.loss import get
from dither.measures import robustness
from dither.measures.robustness import attack, corrupt, corruption, vanishing

BOUNDS = (-2.0, 2.0)
METHODS = [(m, t) for m in ("fgsm", "pgd") for t in ("loss", "margin")]


def problem(n: int = 40, seed: int = 0):
    """Images in [−2, 2]⁶, labels of a random net that knows two thirds of them."""
    rng = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(n, 6, generator=rng) - 2
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.7, generator=rng)
        y = net(x).argmax(1)
    y[: n // 3] = (y[: n // 3] + 1) % 3
    return net, x, y


def clean(net, x, y) -> float:
    return float((net(x).argmax(1) == y).double().mean())


def test_corrupt_is_equation_8():
    x = torch.randn(5, 3)
    rng = torch.Generator().manual_seed(3)
    delta = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(corrupt(x, 0.6, rng), 0.8 * x + 0.6 * delta)
    assert torch.equal(corrupt(x, 0.0), x)


def test_corrupt_keeps_the_variance_of_standardised_inputs():
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    spoilt = corrupt(x, 0.5, torch.Generator().manual_seed(1))
    assert float(spoilt.var()) == pytest.approx(float(x.var()), rel=0.05)
    assert float((spoilt * x).mean()) == pytest.approx(math.sqrt(0.75), rel=0.05)  # it shrinks x


@pytest.mark.parametrize("sigma", [-0.1, 1.01, math.nan])
def test_corrupt_takes_a_level_in_0_to_1(sigma):
    with pytest.raises(DitherError, match="not in \\[0, 1\\]"):
        corrupt(torch.zeros(2), sigma)


def test_no_corruption_is_the_clean_accuracy_and_its_binomial_error():
    net, x, y = problem()
    found = corruption(net, x, y, [0.0, 1.0])
    a = clean(net, x, y)
    assert found[0.0].value == a
    assert found[0.0].sem == pytest.approx(math.sqrt(a * (1 - a) / (len(y) - 1)))
    assert found[1.0].value < a


def test_corruption_is_a_function_of_the_seed_and_leaves_torchs_generator_alone():
    net, x, y = problem(200)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (corruption(net, x, y, [0.7], seed=s)[0.7].value for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == again != other


def test_more_draws_make_the_error_smaller_but_not_vanish():
    net, x, y = problem(100)
    errors = [corruption(net, x, y, [0.7], draws=d)[0.7].sem for d in (1, 50)]
    assert 0.3 * errors[0] < errors[1] < errors[0]


@pytest.mark.parametrize(("method", "target"), METHODS)
def test_strength_0_is_the_clean_accuracy(method, target):
    net, x, y = problem()
    found = attack(net, x, y, strengths=[0.0, 0.3], bounds=BOUNDS, method=method, target=target)
    assert found.accuracy[0.0].value == clean(net, x, y)
    assert found.accuracy[0.3].value < clean(net, x, y)


def test_fgsm_is_equation_17_within_bounds():
    net, x, y = problem()
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(at), y, reduction="sum"), at)
    for strength in (0.1, 0.5, 1.5):
        moved = (x + strength * g.sign()).clamp(*BOUNDS)
        found = attack(net, x, y, strengths=[strength], bounds=BOUNDS)
        assert found.accuracy[strength].value == clean(net, moved, y)


def test_on_a_linear_net_both_attacks_are_the_margin_over_the_dual_norm():
    torch.manual_seed(0)
    net, x = nn.Linear(5, 2), torch.randn(60, 5)
    y = net(x).argmax(1)
    with torch.no_grad():
        z = net(x)
        own = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
        radius = own / (net.weight[0] - net.weight[1]).abs().sum()
    for strength in (0.05, 0.2, 0.6):
        kept = float((radius > strength).double().mean())
        for method, target in METHODS:
            found = attack(
                net, x, y, strengths=[strength], bounds=(-9, 9), method=method, target=target
            )
            assert found.accuracy[strength].value == kept


def test_what_is_attacked_stays_within_its_bounds():
    net, x, y = problem()
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    attack(net, x, y, strengths=[1.0], bounds=BOUNDS, method="pgd")
    inputs = torch.cat(seen)
    assert BOUNDS[0] <= inputs.min() < inputs.max() <= BOUNDS[1]
    assert (inputs.abs() == 2).any()  # some were clipped


def test_inputs_outside_the_bounds_are_an_error_not_clipped_in_silence():
    net, x, y = problem()
    with pytest.raises(DitherError, match="not within its bounds"):
        attack(net, x, y, strengths=[0.1], bounds=(0.0, 1.0))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"bounds": (1.0, 0.0)}, "lowest, highest"),
        ({"method": "deepfool"}, "'fgsm' or 'pgd'"),
        ({"target": "logits"}, "'loss' or 'margin'"),
        ({"draws": 0}, "draws is a whole number ≥ 1"),
        ({"draws": 3}, "attack: draws"),
    ],
)
def test_bad_input_is_a_sentence(how, match):
    net, x, y = problem()
    with pytest.raises(DitherError, match=match):
        attack(net, x, y, **{"strengths": [0.1], "bounds": BOUNDS, **how})


def test_images_need_labels():
    net, x, y = problem()
    with pytest.raises(DitherError, match="classes of the 40 examples"):
        corruption(net, x, y[:-1], [0.0])
    with pytest.raises(DitherError, match="two examples or more: got 1"):
        corruption(net, x[:1], y[:1], [0.0])
    assert vanishing(net, x[:1], y[:1]) in (0, 1)  # a share needs no error
    with pytest.raises(DitherError, match=r"got torch\.bool$"):
        vanishing(net, x, y > 0)
    for wrong in ([1.0], torch.ones(3, dtype=torch.long)):
        with pytest.raises(DitherError, match="corrupt: x must be a tensor of floats"):
            corrupt(wrong, 0.1)
    with pytest.raises(DitherError, match="draws is a whole number ≥ 1: got 0"):
        corruption(net, x, y, [0.0], draws=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox imports an old namespace
@pytest.mark.parametrize(("method", "target"), METHODS)
def test_the_answers_are_those_under_foolboxs_attacks(method, target):
    foolbox, ep = pytest.importorskip("foolbox"), pytest.importorskip("eagerpy")
    net, x, y = problem(200)
    strengths = [0.0, 0.05, 0.2, 0.5, 1.0]
    each = get("cross_entropy").per_sample if target == "loss" else robustness.margin
    if method == "fgsm":
        kind, how = foolbox.attacks.LinfFastGradientAttack, {}
    else:
        kind = foolbox.attacks.LinfProjectedGradientDescentAttack
        how = {"steps": 7, "rel_stepsize": 0.3}

    class On(kind):
        def get_loss_fn(self, model, labels):
            return lambda inputs: ep.astensor(each(model(inputs).raw, labels.raw).sum())

    theirs = foolbox.PyTorchModel(net.eval(), bounds=BOUNDS)
    _, _, success = On(random_start=False, **how)(theirs, x, y, epsilons=strengths)
    how = {"method": method, "target": target, "steps": 7, "step": 0.3}
    ours = attack(net, x, y, strengths=strengths, bounds=BOUNDS, **how).accuracy
    for strength, fooled in zip(strengths, success, strict=True):
        assert ours[strength].value == float((~fooled).double().mean())


@pytest.mark.parametrize("when", ["training", "always"])
def test_noise_is_off_by_default_and_its_clock_stands_still(when):
    net, x, y = problem()
    bare = attack(net, x, y, strengths=[0.3], bounds=BOUNDS), corruption(net, x, y, [0.3])
    noise = dither.inject(net.train(), dither.Additive(5.0), seed=0, when=when)
    net(x)
    state = noise.get_extra_state()
    assert bare == (attack(net, x, y, strengths=[0.3], bounds=BOUNDS), corruption(net, x, y, [0.3]))
    assert (noise.when, noise.paused, noise.get_extra_state()) == (when, False, state)
    assert net.training


@pytest.mark.parametrize("what", [dither.Additive(5.0), dither.Weight(1.0)], ids=["h", "weights"])
def test_noise_inside_a_wrapped_model_is_found(what):
    """As where a net is preceded by the scaling of its pixels."""
    net, x, y = problem()
    whole = nn.Sequential(nn.Identity(), net)
    bare = corruption(whole, x, y, [0.3]), robustness.vanishing(whole, x, y)
    noise = dither.inject(net, what, seed=0, when="always")
    assert bare == (corruption(whole, x, y, [0.3]), robustness.vanishing(whole, x, y))
    assert noise.step == 0
    with robustness.silent(whole):
        clean = whole(x)
    with robustness.noisy(whole, 1):
        assert (whole(x) - clean).abs().min() > 0
    attack(whole, x, y, strengths=[0.0], bounds=BOUNDS, draws=3)
    assert noise.step == 0


def test_with_draws_the_answer_is_the_mean_probability():
    net, x, y = problem()
    dither.inject(net, dither.Additive(0.5), seed=0)
    quiet = attack(net, x, y, strengths=[0.0], bounds=BOUNDS).accuracy[0.0]
    with robustness.noisy(net, 400):
        log_p = robustness._Answer(net, 400)(x)
        direct = torch.stack([torch.softmax(net(x), 1) for _ in range(400)]).mean(0)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(x)))
    assert (log_p.exp() - direct).abs().max() < 0.2  # two means of 400 draws
    loud = attack(net, x, y, strengths=[0.0], bounds=BOUNDS, draws=400).accuracy[0.0]
    assert abs(loud.value - quiet.value) < 0.2


def test_draws_of_no_noise_change_nothing():
    net, x, y = problem()
    bare = attack(net, x, y, strengths=[0.2], bounds=BOUNDS, method="pgd").accuracy
    dither.inject(net, dither.Additive(0.0), seed=0)
    assert attack(net, x, y, strengths=[0.2], bounds=BOUNDS, method="pgd", draws=2).accuracy == bare


class Loud(nn.Module):
    """The same answers, so sure of themselves that the loss has no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return 1e6 * self.net(x)


def test_masking_looks_robust_on_the_loss_and_is_not_on_the_margin():
    net, x, _ = problem()
    y = net(x).argmax(1)
    assert vanishing(net, x, y) == 0
    assert vanishing(Loud(net), x, y) == 1
    how = {"strengths": [0.3], "bounds": BOUNDS}
    masked = attack(Loud(net), x, y, **how)
    assert masked.vanishing == 1
    assert masked.accuracy[0.3].value == 1
    margin = attack(Loud(net), x, y, target="margin", **how)
    assert margin.vanishing == 0
    assert margin.accuracy == attack(net, x, y, target="margin", **how).accuracy


def test_parameters_and_modes_are_left_as_they_were():
    net, x, y = problem()
    net.train()[0].weight.requires_grad_(False)
    attack(net, x, y, strengths=[0.1], bounds=BOUNDS, method="pgd")
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert net.training


def test_large_sets_are_taken_in_parts(monkeypatch):
    net, x, y = problem()
    whole = attack(net, x, y, strengths=[0.0, 0.3], bounds=BOUNDS), corruption(net, x, y, [0.4])
    monkeypatch.setattr(robustness, "CHUNK", 7)
    parts = attack(net, x, y, strengths=[0.0, 0.3], bounds=BOUNDS), corruption(net, x, y, [0.4])
    assert whole == parts


def broken():
    """A problem whose net gives no number."""
    net, x, y = problem()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    return net, x, y


def attacked(**how):
    return attack(*problem(), **({"strengths": [0.1], "method": "pgd", "bounds": BOUNDS} | how))


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda: corruption(*broken(), [0.5]), "outputs are not finite"),
        (lambda: vanishing(*broken()), "outputs are not finite"),
        (lambda: attack(*broken(), strengths=[0.1], bounds=BOUNDS), "not finite"),
        (lambda: corruption(*problem()[:2], problem()[2] + 3, [0.0]), "0 to 2: got torch.int64"),
        (lambda: corruption(*problem(), 0.5), "sequence of numbers: got 0.5"),
        (lambda: corruption(*problem(), []), "one or more"),
        (lambda: attacked(strengths=[-0.5]), "finite numbers ≥ 0"),
        (lambda: attacked(strengths=[torch.nan]), "finite numbers ≥ 0"),
        (lambda: attacked(steps=0), "steps is a whole number ≥ 1: got 0"),
        (lambda: attacked(step=-0.1), "step is a size > 0.*got -0.1"),
    ],
)
def test_what_makes_an_answer_meaningless_is_refused(f, says):
    with pytest.raises(DitherError, match=says):
        f()


@pytest.mark.parametrize("target", ["loss", "margin"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_labels_of_every_whole_type(dtype, target):
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
    asked = {"strengths": (0.1,), "bounds": (0, 1), "target": target}
    assert attack(net, x, y.to(dtype), **asked) == attack(net, x, y, **asked)
