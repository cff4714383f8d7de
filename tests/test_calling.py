"""What a model is called with, and what it gives: one sentence where that can't be used."""

import re

import oracles
import pytest
import torch
from nets import plain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dither
from dither import measures

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


class Words(nn.Linear):
    """Its output is no tensor."""

    def forward(self, x):
        super().forward(x)
        return "logits"


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (Words(4, 3), X, "the model must give a tensor.*got str"),
        (plain(), "x", "x must be a tensor, a tuple of arguments or a mapping.*got str"),
        (plain(), X.to("meta"), "one device: got the model on cpu, x on meta, y on cpu"),
    ],
    ids=["output", "input", "device"],
)
def test_what_a_model_cannot_be_asked_is_a_sentence(model, x, says):
    noise = dither.inject(model, dither.Additive(0.1))
    with pytest.raises(dither.DitherError, match=says):
        dither.explicit(noise, x, Y)


MEASURED = {
    "margins.inputs": measures.margins.inputs,
    "margins.boundary": measures.margins.boundary,
    "capacity.capacity": measures.capacity.capacity,
    "capacity.layers": lambda net, x, y: measures.capacity.layers(net, x),
    "capacity.path": lambda net, x, y: measures.capacity.path(net, x),
    "corruption": lambda *of: measures.robustness.corruption(*of, levels=[0.1]),
    "attack": lambda *of: measures.robustness.attack(*of, strengths=[0.1], bounds=(-9, 9)),
    "vanishing": measures.robustness.vanishing,
}


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(
    ("x", "got"),
    [({"x": X}, "dict"), ((X,), "tuple"), (X.long(), "torch.int64"), (X[:0], r"\[0, 4\]")],
    ids=["dict", "tuple", "integers", "empty"],
)
def test_measures_that_move_the_input_need_one_tensor_of_floats(name, x, got):
    with pytest.raises(dither.DitherError, match=f"x must be a tensor of floats.*got .*{got}"):
        MEASURED[name](plain(), x, Y[: len(x)])


@pytest.mark.parametrize("name", [n for n in MEASURED if n not in ("capacity.layers",
                                                                   "capacity.path")])  # fmt: skip
@pytest.mark.parametrize("y", [Y.tolist(), Y[:-1], Y[:, None]], ids=["list", "short", "column"])
def test_and_a_class_for_each_example(name, y):
    with pytest.raises(dither.DitherError, match="y "):
        MEASURED[name](plain(), X, y)


# ------------------------------------------------------------------------- several outputs


class Gives(nn.Module):
    """A classifier whose forward wraps z, and its hidden layer h, in something."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = plain().double(), wrap

    def forward(self, x):
        h = self.net[:2](x)
        return self.wrap(self.net[2:](h), h)


class Answer(dict):
    """As transformers' outputs: a mapping whose entries are attributes."""

    logits = property(lambda self: self["logits"])


ONE = {
    "a tensor": lambda z, h: z,
    "a tuple of one": lambda z, h: (z,),
    "a list of one": lambda z, h: [z],
    "a mapping of one": lambda z, h: {"out": z},
    "loss first": lambda z, h: (z.square().mean(), z),
    "classes too": lambda z, h: (z.argmax(-1), z, None),
    "a nested state": lambda z, h: (z, (h, h)),
    "logits among others": lambda z, h: {"hidden": h, "logits": z, "loss": z.mean()},
    "logits of transformers": lambda z, h: Answer(hidden=h, logits=z),
}
SEVERAL = {
    "tuple": (lambda z, h: (z, h), "2 tensors of real numbers (0, 1)"),
    "list": (lambda z, h: [z.mean(), z, None, h], "2 tensors of real numbers (1, 3)"),
    "mapping": (lambda z, h: {"out": z, "aux": h, "n": 3}, "('out', 'aux')"),
}
ASKED = {
    "R": lambda model, noise, x: dither.explicit(noise, x, Y).R.detach(),
    "all": lambda model, noise, x: dither.explicit(noise, x, Y, curvature="full").R.detach(),
    "expected": lambda model, noise, x: dither.expected(noise, x, Y, draws=4, seed=0).value,
    "trace": lambda model, noise, x: measures.trace(model, "cross_entropy", [(x, Y)]).value,
    "spread": lambda model, noise, x: measures.predictive(noise, x, draws=4).mean.value.sum(),
}


@pytest.mark.parametrize("asked", ASKED)
def test_one_output_is_found_wherever_it_is(asked):
    found = set()
    for wrap in ONE.values():
        torch.manual_seed(0)
        model = Gives(wrap)
        noise = dither.inject(model, {"net.0": dither.Additive(0.1)}, seed=0)
        found.add(float(ASKED[asked](model, noise, X.double())))
    assert len(found) == 1


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("wrap", SEVERAL)
def test_of_several_outputs_none_is_taken_in_silence(wrap, asked):
    model = Gives(SEVERAL[wrap][0])
    noise = dither.inject(model, {"net.0": dither.Additive(0.1)}, seed=0)
    with pytest.raises(dither.DitherError, match=re.escape(SEVERAL[wrap][1]) + ".*torch.cat"):
        ASKED[asked](model, noise, X.double())


def test_compare_and_sweep_do_not_take_one_of_several_either():
    pytest.importorskip("polars", reason="the laboratory is not installed")
    several = lambda: Gives(SEVERAL["tuple"][0]).float()  # noqa: E731
    with pytest.raises(dither.DitherError, match="2 tensors of real numbers"):
        dither.compare(several, (X, Y, X, Y), {"none": None}, seeds=1, epochs=1)
    with pytest.raises(dither.DitherError, match="2 tensors of real numbers"):
        dither.sweep(several(), dither.Additive(0.1), [0.1], (X, Y), draws=1)


def test_a_loss_of_all_outputs_joined_is_exact():
    """The recipe of the questions: one tensor out, the loss takes it apart. Against the oracle."""

    def each(z, y):  # [B, 3 + 8] → [B]
        return nn.functional.cross_entropy(z[:, :3], y, reduction="none") + z[:, 3:].pow(4).sum(1)

    def one(z, y):
        return oracles.cross_entropy(z[:3], y) + (z[3:] ** 4).sum()

    model = Gives(lambda z, h: torch.cat([z, h], -1)).eval()
    noise = dither.inject(model, {"net.0": dither.Additive(0.3), "net.2": dither.Additive(0.2)})
    _, R, by_site = dither.explicit(noise, X.double(), Y, each)
    wanted = oracles.regulariser(noise, X.double(), Y, one)
    for site, part in wanted.items():
        oracles.close(by_site[site].detach(), part.detach())
    oracles.close(R.detach(), sum(wanted.values()).detach())


def test_data_that_are_no_batches_are_told():
    model, x, y = nn.Linear(3, 3), torch.randn(6, 3), torch.arange(6) % 3
    for data, said in (
        (TensorDataset(x, y), r"got single samples of TensorDataset; pass DataLoader\("),
        ([{"input": x, "labels": y}], "got a dict of input, labels; give pairs"),
        ([x], "got a Tensor; give pairs"),
    ):
        for ask in (measures.trace, measures.eigenvalues):
            with pytest.raises(dither.DitherError, match=rf"takes batches \(x, y\): {said}"):
                ask(model, "cross_entropy", data)
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    ask = lambda data: measures.trace(model, "cross_entropy", data, of="gauss_newton")  # noqa: E731
    assert ask(loader).value == ask((x, y)).value


def test_a_star_import_leaves_torchs_nn():
    found = {"nn": nn}
    exec("from dither import *", found)
    assert found["nn"] is nn
    assert found["inject"] is dither.inject
    assert "nn" in dir(dither)
