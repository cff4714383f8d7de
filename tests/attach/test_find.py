"""Where noise can go and with what seed, or one sentence why not."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from nets import plain
from torch import nn

import dither
from dither.lab.nets.specs import MLP
from dither.noise import Additive, Node, Weight

Y = torch.tensor([0, 2, 1])


class Bare:
    """No noise yet."""

    sigma = 0.1

    def displace(self, site, rng):
        return rng(dither.gaussian, site.h)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (Bare(), r"Bare, .*variance\(g, site\)"),
        ({}, "empty mapping"),
        ({"0:up": dither.Additive(0.1)}, "'0:up': .*'in' or 'out': got 'up'"),
        ({"0.weight": dither.Additive(0.1)}, "names a parameter, and Additive acts on a module"),
        ({"0:in": dither.Weight(0.1)}, "names a module, and Weight acts on parameters.*'0.weight'"),
        ({"0": dither.Weight(0.1)}, "names a module, and Weight acts on parameters.*'0.weight'"),
    ],
)
def test_a_wrong_kind_of_site_is_told_apart(what, says):
    with pytest.raises(dither.DitherError, match=says):
        dither.inject(torch.nn.Sequential(torch.nn.Linear(2, 2)), what)


def test_draws_of_weights_need_weights():
    with pytest.raises(dither.DitherError, match="say how weight noise is drawn"):
        dither.inject(torch.nn.Linear(2, 2), dither.Additive(0.1), draw="cycle")


def test_a_schedule_is_named_by_where_it_starts():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with dither.inject(model, dither.Additive(lambda step: 0.5 - 0.1 * step)) as noise:
        assert "σ 0.5 at first" in str(noise)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda m: dither.inject("m", Additive(0.1)),
            "needs a model, an nn.Module: got 'm'",
        ),
        (lambda m: dither.inject(m, {0: Additive(0.1)}), "a pattern is a string.*got 0"),
        (lambda m: dither.inject(m, Additive(0.1), seed="a"), "seed is a whole number.*got 'a'"),
        (lambda m: dither.inject(m, Additive(0.1), seed=1.5), "seed is a whole number.*got 1.5"),
        (lambda m: dither.inject(m, Additive(0.1), seed=[]), r"seed is a whole number.*got \[\]"),
        (lambda m: dither.inject(m, Additive(0.1), seed=[0, "a"]), "seed is a whole number"),
        (
            lambda m: dither.inject(m, Additive(0.1), seed=[0, 1]),
            r"Sequential .*got seed=\[0, 1\]",
        ),
        (
            lambda m: dither.inject(MLP((4, 3)).build_stacked([0, 1]), Additive(0.1), seed=[0]),
            "a stack of 2 replicas needs 2 seeds: got 1",
        ),
        (
            lambda m: dither.inject(nn.Sequential(nn.LazyLinear(3)), Node(0.1)),
            "Node at '0:out': LazyLinear has no shape yet: run a batch",
        ),
        (
            lambda m: dither.inject(nn.Sequential(nn.LazyLinear(3)), Weight(0.1)),
            "Weight at '0.weight': LazyLinear has no shape yet: run a batch",
        ),
        (lambda m: dither.inject(m, Node(1.0), batch_dim=-1), "batch_dim is a whole"),
    ],
)
def test_what_inject_cannot_take_is_a_sentence(call, says):
    with pytest.raises(dither.DitherError, match=says):
        call(nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.parametrize("noise", [Node(0.1), Weight(0.1)])
def test_an_example_gives_a_lazy_layer_its_shape(noise):
    model, x = nn.Sequential(nn.LazyLinear(3)), torch.randn(3, 4)
    assert dither.explicit(dither.inject(model, noise, example=x), x, Y).R > 0


def test_replicas_on_several_devices():
    model = nn.DataParallel(plain())
    model.device_ids = [0, 1]  # as on a machine with two
    with pytest.raises(dither.DitherError, match="replicas that DataParallel makes of 'the model'"):
        dither.inject(model, dither.Weight(0.1))
    assert dither.inject(nn.DataParallel(plain()), dither.Weight(0.1)).sites


def test_what_fully_shard_makes(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = plain()
        fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
        for noise in (dither.Additive(0.1), dither.Multiplicative(0.1), dither.Weight(0.1)):
            x, plain_one = torch.randn(3, 4), plain()
            for p, q in zip(plain_one.parameters(), model.parameters(), strict=True):
                p.data.copy_(q.full_tensor() if hasattr(q, "full_tensor") else q)
            a, b = (dither.inject(m, noise, seed=0) for m in (model, plain_one))
            assert torch.equal(model(x), plain_one(x))
            a.remove()
            b.remove()
    finally:
        dist.destroy_process_group()


def test_a_noise_that_is_no_dataclass():
    class Mine:
        sigma: float = 0.1
        side = "in"

        def displace(self, site, rng):
            return 0 * site.h

        def variance(self, g, site):
            return g

    with pytest.raises(dither.DitherError, match=r"Mine, which must be a dataclass"):
        dither.inject(plain(), Mine())
    assert dither.inject(plain(), dataclass(frozen=True)(Mine)()).sites


def test_attention_is_told_what_its_pattern_would_do():
    sites = dither.inject(nn.TransformerEncoderLayer(8, 2, 16), dither.Additive(0.1)).sites
    assert "the pattern 'self_attn:in' puts noise on its query alone" in str(sites)


def test_the_other_name_of_what_is_tied_is_told():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["b"], model["c"].weight = model["a"], model["a"].weight
    for pattern, noise, said in (
        ("b:in", Additive(0.1), "'b' is another name of 'a': use that one"),
        ("b.bias", Weight(0.1), "'b.bias' is another name of 'a.bias': use that one"),
    ):
        with pytest.raises(dither.DitherError, match=f"matches no .*; {said}"):
            dither.inject(model, {pattern: noise})
    assert list(dither.inject(model, {"c.weight": Weight(0.1)}).sites) == ["a.weight"]
