"""Orvieto et al. 2022, Figs. 3-12: nets, noise and baselines against loops; claims by hand."""

import importlib.util
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dither
from dither.errors import DitherError
from dither.lab.data import needs
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import MLP
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.lab.training.optimiser import SGD, Langevin
from dither.lab.training.watch import State, WeightNorms
from dither.measures.curvature import trace
from dither.papers.orvieto2022 import baselines, cnns, fig3, fig4, fig6, fig9, mlps, schemes
from dither.papers.orvieto2022.nets import CropAndFlip, ResNet
from dither.papers.orvieto2022.schemes import FULL, GD, LAYER

SAM = importlib.util.find_spec("pytorch_optimizer")
DIGITS = Data("mnist-5000", train=24, test=16)
SEEDS = (0, 1, 2, 3, 4)


def table(values, spread=0.001):
    """{label: {quantity: values over looks}} → a table of five seeds that differ by `spread`."""
    return Table.of(
        {
            label: {
                s: [
                    (k, q, v + spread * ((3 * s + i) % 5))
                    for q, vs in of.items()
                    for k, v in enumerate(vs)
                ]
                for s in SEEDS
            }
            for i, (label, of) in enumerate(values.items())
        }
    )


def course(accuracy, trace, loss=(2.0, 0.5, 0.1), test=(2.0, 1.0, 1.2)):
    """Three looks of a run."""
    return {
        "accuracy/test": (0.1, 0.5, accuracy),
        "trace": (1.0, trace, trace),
        "trace sem": (0, 0, 0),
        "Gauss–Newton": (1.0, trace, trace),
        "loss/train": loss,
        "loss/test": test,
    }


def verdict(figure, claim, t):
    return next(c for c in figure.claims if c.id == claim).check(t)


# -------------------------------------------------------------------------------------------- nets


def test_resnet18_has_its_parameters():
    net = ResNet().build(0)
    assert len(list(net.parameters())) == 62
    assert sum(p.numel() for p in net.parameters()) == 11_173_962


def test_a_resnet_is_a_function_of_its_seed():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (ResNet(4, (1, 1)).build(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_a_resnet_shrinks_images_and_its_trace_is_exact():
    net = ResNet(4, (1, 2)).build(0).eval()
    x = torch.randn(3, 3, 16, 16)
    assert net(x).shape == (3, 10)
    assert net[:-3](x).shape == (3, 8, 8, 8)  # before the average
    assert trace(net, "cross_entropy", (x, torch.tensor([1, 2, 3]))).exact


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": ()}, {"blocks": (2, 0)}])
def test_a_resnet_without_anything_in_it(wrong):
    with pytest.raises(DitherError, match="at least one block"):
        ResNet(**wrong)


def test_crops_and_flips_are_crops_and_flips():
    x = torch.rand(12, 2, 7, 7) - 0.3
    torch.manual_seed(0)
    moved = CropAndFlip().train()(x)
    black = F.pad(x - x.min(), (4, 4, 4, 4)) + x.min()
    seen = set()
    for i, image in enumerate(moved):
        found = [
            move
            for move in product(range(9), range(9), (False, True))
            if torch.allclose(image, _crop(black[i], *move))
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 6
    assert torch.equal(CropAndFlip().eval()(x), x)


def _crop(image, top, left, flip):
    crop = image[:, top : top + 7, left : left + 7]
    return crop.flip(-1) if flip else crop


# ----------------------------------------------------------------------------------- the same noise


def test_the_ratio_of_noise_to_weights_is_the_papers():
    ratios = {name: net.ratio for name, net in mlps.NETS.items()}
    assert ratios == pytest.approx(
        {"MLP1": 0.46875, "MLP2": 18.75, "MLP3": 2.5, "MLP3 at .05": 0.625, "MLP4": 3.125}
    )


@pytest.mark.parametrize("name", mlps.NETS)
def test_a_narrower_net_keeps_each_layers_ratio(name):
    net, scale = mlps.NETS[name], mlps.Scale(20, 10, 2)
    model = mlps.plain(net, scale, "cosine").model.build(0)
    sites = dither.inject(model, mlps.noise(net, scale)).sites.values()
    assert len(sites) == 2 * (net.depth + 1)
    for site in sites:
        layer = int(site.name[2])
        here, there = (784, 784) if layer == 0 else (20, net.width)
        assert site.noise.sigma**2 * here == pytest.approx(
            net.sigma**2 * there
        )  # Var W = 1/3 fan_in
    assert mlps.noise(net, mlps.PAPER) == dither.Weight(net.sigma)


def test_the_step_is_kept_too():
    net = mlps.NETS["MLP2"]
    wide, narrow = (mlps.plain(net, mlps.Scale(w, 10, 2), "cosine") for w in (None, 50))
    assert wide.optimiser == SGD(0.005, momentum=0.9)
    assert narrow.optimiser.lr * 50 == pytest.approx(0.005 * 5000)


def test_full_and_layer_wise_noise_have_one_R():
    net, scale = mlps.NETS["MLP1"], mlps.Scale(6, 10, 2)
    model = mlps.plain(net, scale, "cosine").model.build(0).double()
    x, y = torch.rand(5, 784).double(), torch.arange(5)
    found = []
    for draw in ("all", "cycle"):
        with dither.inject(model, mlps.noise(net, scale), draw=draw) as noise, torch.no_grad():
            found.append(dither.explicit(noise, x, y).R.item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_the_residual_nets_noise_reaches_every_tensor_once_and_stops():
    net = ResNet(4, (1, 1))
    model = net.build(0)
    noise = dither.inject(model, fig6.noise(net, 0.1, 20))
    assert len(noise.sites) == len(list(model.parameters()))
    sigma = {name: site.noise.sigma for name, site in noise.sites.items()}
    assert {s(17) for n, s in sigma.items() if "norm" in n or n == "conv.weight"} == {0.1}
    assert sigma["stage1_0.shortcut.1.weight"](17) == 0.1
    assert sigma["stage1_0.shortcut.0.weight"](17) == sigma["fc.bias"](17) == pytest.approx(0.4)
    assert {s(18) for s in sigma.values()} == {0.0}


# ---------------------------------------------------------------------------------------- baselines


def test_noise_after_the_step_is_larger_behind_the_first_layer():
    model = MLP((3, 2, 2)).build(0)
    weights = list(model.parameters())
    sgd = SGD(0.1)
    plain = Langevin(sgd, 0.5).after(sgd.build(weights), 7)
    for spec in (baselines.NoiseAfter(sgd, 0.5, 4.0), baselines.AntiNoise(sgd, 0.5, 4.0)):
        ours = spec.after(sgd.build(weights), 7)
        for i, w in enumerate(weights):
            assert torch.equal(ours.xi(i, w, 3), plain.xi(i, w, 3) * (4.0 if i > 1 else 1.0))


def minimal(**changes) -> Run:
    base = {"data": DIGITS, "model": MLP((784, 5, 10)), "optimiser": SGD(0.2), "steps": 3,
            "watch": (WeightNorms(every=None),)}  # fmt: skip
    return Run(**(base | changes))


@pytest.mark.skipif(SAM is None, reason="the package pytorch_optimizer is not installed")
def test_sharpness_aware_steps_are_foret_et_als():
    run = minimal(optimiser=baselines.SharpnessAware(SGD(0.2, momentum=0.5), rho=0.3))
    rows = execute(run, (0, 1), Silent())
    for seed in (0, 1):  # each seed by itself, though plain runs of this width are stacked
        t, model = DIGITS.load(seed), run.model.build(seed)
        w = list(model.parameters())
        speed = [torch.zeros_like(p) for p in w]
        for _ in range(3):
            g = torch.autograd.grad(F.cross_entropy(model(t.x_train), t.y_train), w)
            norm = torch.sqrt(sum(p.square().sum() for p in g))
            there = [
                (p + 0.3 * q / norm).detach().requires_grad_() for p, q in zip(w, g, strict=True)
            ]
            names = [name for name, _ in model.named_parameters()]
            z = torch.func.functional_call(
                model, dict(zip(names, there, strict=True)), (t.x_train,)
            )
            g = torch.autograd.grad(F.cross_entropy(z, t.y_train), there)
            with torch.no_grad():
                for p, v, q in zip(w, speed, g, strict=True):
                    p -= 0.2 * v.mul_(0.5).add_(q)
        for (_, name, value), p in zip(rows[seed], w, strict=True):
            assert value == pytest.approx(p.norm().item(), rel=1e-5), name


def test_without_its_package_sam_is_left_out_and_says_why(monkeypatch):
    assert ("SAM" in fig3.figure.at("smoke")) == (SAM is not None)
    monkeypatch.setattr(baselines, "find_spec", lambda _: None)
    assert "SAM" not in fig3.figure.at("smoke")
    with pytest.raises(DitherError, match=r"pip install 'dither\[sam\]'"):
        baselines.SharpnessAware(SGD(0.1)).build([])


# ---------------------------------------------------------------------------------- reading a table


def test_between_looks_the_loss_falls_exponentially():
    t = table({"a": {"loss/train": np.exp([0, -2, -3]), "trace": (0, 2, 9)}}, spread=0)
    level = np.exp([-1.0, -2.0, -2.5])
    assert schemes.at_loss(t, "a", "trace", level) == pytest.approx([1, 2, 5.5])
    assert np.isnan(schemes.at_loss(t, "a", "trace", np.full(3, np.exp(-4)))).all()


def test_the_best_run_of_a_seed_is_chosen_on_the_others():
    found = [np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 2.0])]
    assert schemes.chosen(found).tolist() == [0.0, 0.0, 0.0]


def test_the_common_loss_is_the_highest_of_the_lowest():
    t = table({"a": {"loss/train": (2, 0.1, 0.3)}, "b": {"loss/train": (2, 1, 0.5)}}, spread=0)
    assert schemes.common_loss(t, ("a", "b")) == pytest.approx([0.5] * 5)


def test_the_watch_sees_both_traces_of_a_relu_net():
    spec, data = MLP((784, 6, 10)), DIGITS.load(0)
    run = minimal(model=spec)
    state = State(run, (0,), 0, 0, spec.build(0).eval(), None, data)
    seen = schemes.Curvature(limit=8)(state)
    assert seen["trace"] == seen["Gauss–Newton"] > 0
    assert seen["trace sem"] == seen["Gauss–Newton sem"] == 0
    tanh = replace(state, model=MLP((784, 6, 10), activation="tanh").build(0).eval())
    seen = schemes.Curvature(limit=8)(tanh)
    assert seen["trace sem"] > 0 == seen["Gauss–Newton sem"]


# ------------------------------------------------------------------------------------------- claims


def mlp(name, units=None, **courses):
    of = mlps.named(name, "cosine", units)
    keys = {"gd": GD, "full": FULL, "layer": LAYER}
    return table(
        {of[keys[k]]: course(*v) if isinstance(v, tuple) else v for k, v in courses.items()}
    )


def test_narrow_nets():
    figure = mlps.figure("MLP1")
    good = mlp("MLP1", gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    holds, numbers = verdict(figure, "O13 (MLP1)", good)
    assert holds is True
    gap = numbers[f"accuracy: {LAYER} − {FULL}"]
    assert gap.mean == pytest.approx(0.05)
    assert (gap.n, gap.asked, gap.holds) == (5, "> 0.01", True)
    assert verdict(figure, "trace end (MLP1)", good)[0] is True
    assert verdict(figure, "trace equal loss (MLP1)", good)[0] is True
    worse = mlp("MLP1", gd=(0.7, 50), full=(0.75, 10), layer=(0.74, 20))
    for claim in ("O13", "trace end", "trace equal loss"):
        assert verdict(figure, f"{claim} (MLP1)", worse)[0] is False
    point = mlp("MLP1", gd=(0.7, 50), full=(0.75, 20), layer=(0.755, 10))  # half a point more
    assert verdict(figure, "O13 (MLP1)", point)[0] is not True
    small = mlp("MLP1", 128, gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(figure, "O13 (MLP1)", small)[0] is True


def test_both_strengths_of_the_noise_are_asked_of_mlp3():
    """App. F.1 and the main text; the one that a scale leaves out is not judged."""
    paper, quick = fig9.figure.at("paper"), fig9.figure.at("quick")
    sigma = {s: paper[f"MLP3{s} {FULL}, cosine"].noise.sigma for s in ("", " at .05")}
    assert sigma == {"": 0.1, " at .05": 0.05}
    assert paper[f"MLP3 {GD}, cosine"].key == paper[f"MLP3 at .05 {GD}, cosine"].key
    assert not any(label.startswith("MLP3 GD") for label in quick)
    t = mlp("MLP3 at .05", 128, gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(fig9.figure, "O13 (MLP3 at .05)", t)[0] is True
    holds, numbers = verdict(fig9.figure, "O13 (MLP3)", t)
    assert holds is None
    assert "not trained at this scale" in numbers["why"]


def test_wide_nets():
    good = mlp("MLP4", gd=(0.7, 50), full=course(0.5, 20, (2.0, 1.0, 0.4)), layer=(0.8, 10))
    holds, numbers = verdict(fig4.figure, "O14 (MLP4)", good)
    assert holds is True
    assert numbers["undertraining: training loss, full / GD"] == pytest.approx([4] * 5, rel=0.05)
    both = mlp("MLP4", gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(fig4.figure, "O14 (MLP4)", both)[0] is False


@pytest.mark.parametrize("units", [128, 999])
def test_a_narrow_net_says_nothing_of_a_wide_one(units):
    courses = {"gd": (0.7, 50), "full": course(0.5, 20, (2.0, 1.0, 0.4)), "layer": (0.8, 10)}
    for claim in ("O14", "O15 end", "O15 equal loss"):
        holds, numbers = verdict(fig4.figure, f"{claim} (MLP4)", mlp("MLP4", units, **courses))
        assert holds is None
        assert f"{units} units say nothing" in numbers["why"]
        assert verdict(fig4.figure, f"{claim} (MLP4)", mlp("MLP4", 1000, **courses))[0] is True


def test_nothing_is_said_of_what_has_not_learnt():
    dead, fine = course(0.1, 1, (2.3, 2.3, 2.3)), course(0.7, 50)
    for gd, full, layer in ((dead, fine, fine), (fine, dead, fine), (fine, fine, dead)):
        t = mlp("MLP3", gd=gd, full=full, layer=layer)
        for claim in ("O13", "O15 end", "O15 equal loss"):
            holds, numbers = verdict(fig9.figure, f"{claim} (MLP3)", t)
            assert holds is None
            assert "needed is at most 1" in numbers["why"]
    t = mlp("MLP4", gd=fine, full=dead, layer=course(0.8, 10))
    assert verdict(fig4.figure, "O14 (MLP4)", t)[0] is True  # that full noise hurts is the claim


def test_figure_4_and_9_share_their_runs():
    ours, theirs = fig4.figure.at("quick"), fig9.figure.at("quick")
    assert {k: run.key for k, run in theirs.items()}.items() <= {
        k: run.key for k, run in ours.items()
    }.items()


def sweep(full, layer, gd=0.7, units=""):
    runs = {GD + units: course(gd, 50)}
    for scheme, ends in ((FULL, full), (LAYER, layer)):
        runs |= {fig3.label(scheme, s): course(a, 9) for s, a in zip((0.1, 0.2), ends, strict=True)}
    return table(runs)


def test_the_sweep():
    good = sweep((0.7, 0.5), (0.75, 0.6))
    assert verdict(fig3.figure, "O12", good)[0] is True
    assert verdict(fig3.figure, "O12 best", good)[0] is True
    assert verdict(fig3.figure, "O12", sweep((0.72, 0.5), (0.75, 0.6)))[0] is False
    assert verdict(fig3.figure, "O12", sweep((0.6, 0.5), (0.7, 0.6)))[0] is False
    assert verdict(fig3.figure, "O12 best", sweep((0.76, 0.5), (0.75, 0.6)))[0] is False
    thin = sweep((0.7, 0.5), (0.75, 0.6), units=", 128 units")
    for claim in ("O12", "O12 best"):
        assert "128 units say nothing" in verdict(fig3.figure, claim, thin)[1]["why"]
    assert fig3.gd(thin) in fig3.figure.at("quick")


@pytest.mark.parametrize(
    ("cifar", "substitute", "expected"),
    [(True, False, ["cifar-10"]), (True, True, ["cifar-10", "fashion-mnist-rgb"]),
     (False, False, ["fashion-mnist-rgb"]), (False, True, ["fashion-mnist-rgb"])],
)  # fmt: skip
def test_cifar_where_it_is_here(monkeypatch, cifar, substitute, expected):
    monkeypatch.setattr(needs, "found", lambda name: "here" if cifar else None)
    assert cnns.sets(cnns.Scale(1, substitute=substitute)) == expected


def cnn(net, gd, full, layer, thinner=1):
    of = cnns.named(net, cnns.FASHION, thinner)
    losses = dict(zip((GD, FULL, LAYER), (gd, full, layer), strict=True))
    return table({of[s]: course(0.8, 9, test=(2.0, *ends)) for s, ends in losses.items()})


def test_convolutional_nets():
    toy, wide = cnns.figure("toy"), cnns.figure("wide")
    good = cnn("toy", (0.5, 0.9), (0.5, 0.6), (0.5, 0.55))
    assert verdict(toy, "O16 on Fashion-MNIST", good)[0] is True
    for found, said in ((None, "not run: data absent: put cifar-10"), ("/here", "not among these")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(needs, "found", lambda _, found=found: found)
            assert said in verdict(toy, "O16", good)[1]["why"]
    worse = cnn("toy", (0.5, 0.6), (0.5, 0.9), (0.5, 0.55))
    assert verdict(toy, "O16 on Fashion-MNIST", worse)[0] is False
    for ends, holds in (((0.6, 0.5), True), ((0.5, 0.6), False), ((0.5, 0.49), False)):
        full, layer = ((0.5, end) for end in ends)
        t = cnn("wide", (0.5, 0.9), full, layer)
        assert verdict(wide, "O17 on Fashion-MNIST", t)[0] is holds
    thin = cnn("wide", (0.5, 0.9), (0.5, 0.6), (0.5, 0.5), 4)
    assert "4 times fewer" in verdict(wide, "O17 on Fashion-MNIST", thin)[1]["why"]
    assert set(thin.labels) <= set(wide.at("quick"))


def residual(full, layer, traces=(5, 50), kept=0.0, width=fig6.WIDTH):
    data, sigmas = cnns.FASHION, (0.03, 0.1)
    runs = {fig6.named(data, width=width): course(0.8, 10)}
    for scheme, ends in ((FULL, full), (LAYER, layer)):
        for sigma, end, curved in zip(sigmas, ends, traces, strict=True):
            runs[fig6.named(data, scheme, sigma)] = course(end, curved)
        runs[fig6.named(data, scheme, 0.1, fig6.KEPT)] = course(ends[1] + kept, 9)
    return table(runs, spread=0.0005)


ON = "on Fashion-MNIST"


def test_the_residual_net():
    good = residual((0.8, 0.7), (0.81, 0.82))
    for claim in ("O18", "O18 headline", "O19", "O18 statistics"):
        assert verdict(fig6.figure, f"{claim} {ON}", good)[0] is True
        assert verdict(fig6.figure, claim, good)[0] is None
    worse = residual((0.8, 0.7), (0.79, 0.75), traces=(30, 50), kept=0.05)
    for claim in ("O18", "O18 headline", "O19", "O18 statistics"):
        assert verdict(fig6.figure, f"{claim} {ON}", worse)[0] is False
    fine = residual((0.8, 0.85), (0.81, 0.82))
    assert "none of these" in verdict(fig6.figure, f"O18 {ON}", fine)[1]["why"]
    thin = residual((0.8, 0.7), (0.81, 0.82), width=8)
    for claim in ("O18", "O18 headline", "O19"):
        assert "8 channels say nothing" in verdict(fig6.figure, f"{claim} {ON}", thin)[1]["why"]
    assert verdict(fig6.figure, f"O18 statistics {ON}", thin)[0] is True
    assert verdict(fig6.figure, f"O18 {ON}", residual((0.8, 0.7), (0.81, 0.82), width=16))[0]
    assert fig6.sgd(thin, cnns.FASHION) in fig6.figure.at("quick")


@pytest.mark.parametrize("span", [(2.303, 2.297), (0.4, 3.0), (0.01, 50.0)])
def test_numbers_on_a_logarithmic_axis_never_overprint(span):
    from matplotlib.figure import Figure

    picture = Figure(figsize=(4, 3))
    ax = picture.subplots()
    ax.plot([0, 1], span)
    schemes.logarithmic(ax)
    picture.canvas.draw()
    labels = [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]
    inside = [b for b in labels if b.get_text() and _within(ax, b.get_position()[1])]
    boxes = sorted(b.get_window_extent().intervaly.tolist() for b in inside)
    assert 2 <= len(boxes) < 8
    assert len({b.get_text() for b in inside}) == len(inside)
    assert all(low[1] <= high[0] for low, high in pairwise(boxes))


def _within(ax, y):
    low, high = ax.get_ylim()
    return low <= y <= high
