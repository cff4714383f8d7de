"""Orvieto et al. 2022, Figs. 3-12: nets, noise and baselines against loops."""

import importlib.util
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

import dither
from dither.errors import DitherError
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import MLP
from dither.lab.runs.execute import execute
from dither.lab.training.optimiser import SGD, Langevin
from dither.lab.training.watch import State, WeightNorms
from dither.measures.curvature import trace
from dither.papers.orvieto2022 import baselines, fig3, fig6, mlps, schemes
from dither.papers.orvieto2022.nets import CropAndFlip, ResNet

SAM = importlib.util.find_spec("pytorch_optimizer")
DIGITS = Data("mnist-5000", train=24, test=16)


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


def test_channels_are_last_but_in_narrow_resnets():
    """Their strided convolutions of one pixel write past their buffers on some CPUs."""
    for width, last in ((4, False), (8, True)):
        net = ResNet(width=width, blocks=(1, 1)).build(0)
        for weight in (net.stage1_0.conv0.weight, net.stage1_0.shortcut[0].weight):
            assert weight.is_contiguous(memory_format=torch.channels_last) is (
                last or weight.shape[-1] == 1
            )
        assert net.stage1_0.conv0.weight.is_contiguous() is not last


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
        {
            "MLP1": 0.46875,
            "MLP2": 18.75,
            "MLP3": 2.5,
            "MLP3 at .05": 0.625,
            "MLP3 at .05, rate .02": 0.625,
            "MLP4": 3.125,
        }
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
