"""What `inject` does with the arguments, outputs and inner workings of all kinds of modules."""

import collections
import dataclasses

import pytest
import torch
from nets import NOISES, shadows
from torch import nn
from torch.nn.utils import parametrizations

import dither

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

# ------------------------------------------------------------------------- arguments and outputs

Pair = collections.namedtuple("Pair", "ids hidden")


@dataclasses.dataclass(frozen=True)
class Plain:
    """An output that is neither a tuple nor a mapping."""

    note: str
    hidden: torch.Tensor


class Output(collections.OrderedDict):
    """As Hugging Face has it: a mapping whose keys are attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Odd(nn.Module):
    """Gives what it is told to give; takes keywords only."""

    def __init__(self, give):
        super().__init__()
        self.fc, self.give = nn.Linear(4, 3), give

    def forward(self, *, ids, hidden):
        return self.give(ids, self.fc(input=hidden))


GIVE = {
    "tuple": lambda i, h: (i, h),
    "list": lambda i, h: [i, h],
    "named tuple": Pair,
    "dict": lambda i, h: {"ids": i, "hidden": h},
    "model output": lambda i, h: Output(ids=i, hidden=h),
    "dataclass": lambda i, h: Plain("a note", h),
}


@pytest.mark.parametrize("kind", GIVE)
def test_outputs_of_every_kind(kind):
    def read(out):
        if isinstance(out, dict):
            return out["hidden"]
        return out.hidden if hasattr(out, "hidden") else out[1]

    model = Odd(GIVE[kind])
    ids = torch.arange(6)
    clean = model(ids=ids, hidden=X)
    with dither.inject(model, {":out": dither.Additive(0.5)}, seed=0):
        noisy = model(ids=ids, hidden=X)
    assert type(noisy) is type(clean)
    assert not torch.equal(read(noisy), read(clean))
    if kind == "model output":
        assert noisy.hidden is noisy["hidden"]
    with dither.inject(model, dither.Additive(0.5), seed=0):  # the input of fc, by keyword
        assert not torch.equal(read(model(ids=ids, hidden=X)), read(clean))
    with dither.inject(model, {"input": dither.Additive(0.5)}, seed=0):  # the first real tensor
        assert not torch.equal(read(model(ids=ids, hidden=X)), read(clean))
    assert torch.equal(read(model(ids=ids, hidden=X)), read(clean))


def test_noise_on_whole_numbers_is_refused():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    dither.inject(model, {"input": dither.Additive(0.1)})
    with pytest.raises(dither.DitherError, match=r"'input' needs real numbers: got torch\.int64"):
        model(torch.tensor([1, 2]))
    assert not shadows(model)


# -------------------------------------------------------------------------------- kinds of modules


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.seen = []

    def forward(self, ids):
        self.seen.append((self.embed.weight, self.head.weight))
        return self.head(self.embed(ids).tanh())


def test_tied_weights_share_their_noise():
    model = Tied()
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    assert list(noise.sites) == ["embed.weight"]
    model(torch.tensor([1, 2, 3])).sum().backward()
    ((a, b),) = model.seen
    assert a is b
    assert a is not model.embed.weight
    assert model.embed.weight is model.head.weight
    noise.remove()
    assert list(dither.inject(model, {"head.*": dither.Weight(0.1)}).sites) == ["embed.weight"]


RECURRENT = {
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, batch_first=True), (3, 6, 4)),
    "gru": (lambda: nn.GRU(4, 5, bidirectional=True), (6, 3, 4)),
    "gru cell": (lambda: nn.GRUCell(4, 5), (3, 4)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), (3, 6, 4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (6, 4)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (6, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), (6, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), (3, 6, 4)),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.filterwarnings("ignore:.*non-contiguous")
def test_weight_noise_reaches_every_parameter_of(kind):
    make, shape = RECURRENT[kind]
    model, x = make(), torch.randn(shape)
    for p in model.parameters():
        p.data += 0.1  # zero biases of attention would have no gradient
    args = {"attention": (x, x, x), "gru cell": (x, torch.ones(3, 5))}.get(kind, (x,))
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    if kind == "spectral norm":
        model.eval()  # its power iteration moves in train mode
    clean = first(model(*args))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name in dict(model.named_parameters()):
        with dither.inject(model, {name: dither.Weight(0.3)}, seed=0, when="always"):
            noisy = first(model(*args))
        assert not shadows(model), name
        assert not torch.equal(noisy, clean), name
    assert torch.equal(first(model(*args)), clean)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with dither.inject(model, dither.Weight(0.3), seed=0, when="always"):
        first(model(*args)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_recurrent_module_reads_its_own_parameters_again():
    model = nn.LSTM(4, 5)
    with dither.inject(model, dither.Weight(0.1)):
        model(torch.randn(6, 3, 4))
        assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))


def test_the_transformer_in_eval():
    """PyTorch leaves its fused path while any hook is there: equal to rounding until removed."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        clean = model(x)
        with dither.inject(model, dither.Additive(0.1), seed=0) as noise:
            torch.testing.assert_close(model(x), clean)
            assert not torch.equal(model.train()(x), clean)
            model.eval()
        assert torch.equal(model(x), clean)
    assert "layers.0.self_attn.out_proj" in noise.sites.skipped
    assert "layers.0.linear1:in" in noise.sites


@pytest.mark.parametrize("name", NOISES)
def test_channels_last_is_preserved(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    seen = []
    dither.inject(model, NOISES[name](), seed=0, example=x)
    model[2].register_forward_pre_hook(lambda m, args: seen.extend([args[0], m.weight]))
    z = model(x)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*seen, z))


def test_an_in_place_activation_does_not_rewrite_the_noise():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    dither.inject(model, {"*:out": dither.Additive(0.1)}, seed=0)
    model(X).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
