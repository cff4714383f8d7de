"""Probes of a Hessian's trace: signs of each sample's own, and of each element's own."""

import torch
from blocks import Z, case, dense
from torch import nn

from dither.attach.inject import inject
from dither.measures.curvature import trace
from dither.noise import Weight


def test_probes_of_two_samples_are_uncorrelated():
    """One V serves all samples. The probe of a batch of the same sample B times over must still be
    a mean of B uncorrelated ones: its variance is that of one sample over B. Of F with (399, 399)
    degrees of freedom (were probes normal) 1.5 is the quantile 1 − 3·10⁻⁵; of signs shared by the
    batch the ratio is off by B.
    """
    model, x, y, _ = case("attention", batch=1)
    one = trace(model, "cross_entropy", (x, y), probes=400)
    b = 8
    many = (x.repeat(b, 1, 1), y.repeat(b))
    all_of_them = trace(model, "cross_entropy", many, probes=400)
    inner = (
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    )
    others = ("self_attn.in_proj_bias", "norm1.weight", "norm2.weight", "norm2.bias")
    for name in (*(f"block.{n}" for n in inner + others), "head.weight"):
        ratio = one.by_parameter[name].sem ** 2 / all_of_them.by_parameter[name].sem ** 2
        assert 1 / 1.5 < ratio / b < 1.5, name


def test_a_norm_over_two_dimensions_has_a_sign_for_each_element():
    """The head weighs all elements alike: signs that some of them share would find their products
    too, three times the trace.
    """
    torch.manual_seed(0)
    head = nn.Linear(9, 3)
    head.weight.data[:] = torch.randn(3, 1) / 3
    model = nn.Sequential(nn.LayerNorm((3, 3)), nn.Tanh(), nn.Flatten(), head).double()
    x, y = torch.randn(6, 3, 3).double(), torch.tensor([0, 1, 2] * 2)
    true = dense(model, x, y)
    for name in ("0.weight", "0.bias"):
        with inject(model, {name: Weight(1.0)}) as alone:
            part = trace(alone, "cross_entropy", (x, y), probes=4000)
        assert abs(part.value - true[name]) <= Z * part.sem
        assert part.sem < 0.1 * abs(true[name])
