"""Weight noise on every parameter of every kind of module: R and its gradient are the dense
ones.
"""

import pytest
import torch
import torch.nn.functional as F
from oracles import LOSSES, close, gradients, half, regulariser
from torch import nn

import dither
from dither.noise import DropConnect, Weight, gaussian
from dither.regulariser import pull

B = 3


def check(model, x, y=None, loss="cross_entropy", like=None, noise=None, **kwargs):
    """R, its share by parameter, its gradient and its value without gradients, against the
    oracle.
    """
    y = torch.tensor([0, 2, 1]) if y is None else y
    for what in (Weight(0.2), DropConnect(0.3, gaussian)) if noise is None else (noise,):
        injected = dither.inject(model, what, seed=0, **kwargs)
        found = dither.explicit(injected, x, y, loss)
        truth = regulariser(injected, x, y, like or LOSSES[loss])
        close(torch.stack([*found.by_site.values()]), torch.stack([*truth.values()]))
        close(gradients(found.R, injected), gradients(sum(truth.values()), injected))
        with torch.no_grad():
            close(dither.explicit(injected, x, y, loss).R, found.R.detach())
        injected.remove()


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Head(nn.Module):
    """A body, tanh, and a Linear on what is left: [B, …] → [B, 3]."""

    def __init__(self, body, x):
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.double().eval()(x).flatten(1).shape[1], 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).flatten(1))


@pytest.fixture
def _no_fallback(monkeypatch):
    def one_by_one(*args):
        raise AssertionError("a rule should have met every use")

    monkeypatch.setattr(pull, "one_by_one", one_by_one)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 2), (4,)),
    "linear on sequence": (lambda: nn.Linear(4, 2), (5, 4)),
    "linear on sequence as long as the batch": (lambda: nn.Linear(4, 2), (3, 4)),
    "linear on images": (lambda: nn.Linear(4, 2, bias=False), (2, 2, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv1d same": (lambda: nn.Conv1d(2, 2, 4, padding="same"), (2, 6)),
    "conv1d dilated groups": (lambda: nn.Conv1d(4, 2, 2, dilation=2, groups=2), (4, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2), (2, 4, 4)),
    "conv2d strided": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 4)),
    "conv2d same": (lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=(2, 1)), (1, 4, 4)),
    "conv2d valid": (lambda: nn.Conv2d(1, 2, 2, padding="valid"), (1, 3, 3)),
    "conv2d circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 4, 4)),
    "conv2d reflect same": (
        lambda: nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect"),
        (1, 4, 4),
    ),
    "conv2d groups": (lambda: nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 6, 2, groups=3, bias=False), (3, 3, 3)),
    "conv2d dilated": (lambda: nn.Conv2d(2, 2, 2, dilation=2), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (1, 2, 2, 3)),
    "conv3d groups": (lambda: nn.Conv3d(2, 2, (1, 2, 2), groups=2), (2, 2, 2, 3)),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1),
        (2, 3),
    ),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 4, 2, stride=2, groups=2), (2, 2, 2)),
    "transposed 2d dilated": (
        lambda: nn.ConvTranspose2d(1, 2, 2, dilation=2, bias=False),
        (1, 2, 2),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 1, 2)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm 1d on sequence": (lambda: nn.BatchNorm1d(3), (3, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(2), (2, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer norm on sequence": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (2, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 2, 2)),
    "group norm on vectors": (lambda: nn.GroupNorm(2, 4), (4,)),
    "instance norm": (lambda: nn.InstanceNorm2d(2, affine=True), (2, 3, 3)),
    "rms norm": (lambda: nn.RMSNorm(4), (2, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.usefixtures("_no_fallback")
def test_layers(layer):
    make, shape = LAYERS[layer]
    x = randn(B, *shape)
    check(half(Head(make(), x)), x)


FALLBACK = {
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4)), (4,)),
    "lstm": (lambda: Sequence(nn.LSTM(3, 2, batch_first=True)), (2, 3)),
    "bidirectional gru": (
        lambda: Sequence(nn.GRU(3, 2, bidirectional=True, batch_first=True)),
        (2, 3),
    ),
    "seq-first lstm": (lambda: Sequence(nn.LSTM(3, 2), time_first=True), (3, 3)),
    "instance norm with statistics": (
        lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        (2, 3),
    ),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), (4,)),
    "squares": (lambda: Squares(), (4,)),
}


class Sequence(nn.Module):
    def __init__(self, rnn, time_first=False):
        super().__init__()
        self.rnn, self.time_first = rnn, time_first

    def forward(self, x):
        out = self.rnn(x.transpose(0, 1) if self.time_first else x)[0]
        return out.transpose(0, 1) if self.time_first else out


class Squares(nn.Module):
    """One parameter used by a rule and by none."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(x, self.w) + x @ (self.w**2)


@pytest.mark.parametrize("layer", FALLBACK)
def test_what_no_rule_meets(layer):
    make, shape = FALLBACK[layer]
    x = randn(B, *shape)
    model = half(Head(make(), x))
    check(model, x)
    check(model, x[:1], torch.tensor([2]))  # a sample by itself is not examined


@pytest.mark.parametrize("layer", FALLBACK)
def test_what_no_rule_meets_sampled(layer, monkeypatch):
    from signs import every_sign

    make, shape = FALLBACK[layer]
    x, y = randn(2, *shape), torch.tensor([0, 2])
    injected = dither.inject(half(Head(make(), x)), Weight(0.2), seed=0)
    with torch.no_grad():
        n = every_sign(monkeypatch, y.new_empty(2, 3), 1)
        close(dither.explicit(injected, x, y, samples=n).R, dither.explicit(injected, x, y).R)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("end", [0, -1])
def test_a_seq_first_model_that_takes_its_input_so(steps, end):
    """Samples can't be cut along dimension 0; with T = B neither shapes nor one sample tell."""

    class End(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc, self.head = nn.LSTM(3, 2), nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):  # [T, B, 3]; one position alone of the first Linear's output matters
            return self.head(torch.tanh(self.fc(self.rnn(x)[0]))[end])

    check(half(End()), randn(steps, B, 3))


# ---------------------------------------------------------------------------------- ways of using


class Tokens(nn.Module):
    """Embedding with padding and repeated tokens, the same matrix as decoder."""

    def __init__(self, tied, padding_idx=0):
        super().__init__()
        self.embed = nn.Embedding(5, 4, padding_idx=padding_idx)
        self.mix, self.decode = nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        if tied:
            self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(torch.tanh(self.mix(self.embed(tokens))))


TOKENS = torch.tensor([[1, 1, 4], [2, 3, 2], [4, 0, 0]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.usefixtures("_no_fallback")
def test_embeddings(tied):
    model = half(Tokens(tied, padding_idx=None))
    check(model, TOKENS, TOKENS.roll(1, 0))
    assert len(dither.inject(model, Weight(0.1)).sites) == (3 if tied else 4)


def test_noise_reaches_the_padding_row():
    """autograd gives a padding row no gradient, but W + δ is what the forward sees."""
    model = half(Tokens(False))
    plain = half(Tokens(False, padding_idx=None))
    plain.load_state_dict(model.state_dict())
    R = [dither.explicit(dither.inject(m, Weight(0.1)), TOKENS, TOKENS).R for m in (model, plain)]
    close(R[0], R[1])


class Attend(nn.Module):
    def __init__(self, cross, batch_first=True, **kwargs):
        super().__init__()
        self.cross, self.batch_first = cross, batch_first
        self.attend = nn.MultiheadAttention(4, 2, batch_first=batch_first, **kwargs)
        self.head = nn.Linear(4, 3)

    def forward(self, x, memory=None):
        parts = [x, memory if self.cross else x]
        q, kv = parts if self.batch_first else [t.transpose(0, 1) for t in parts]
        return self.head(
            self.attend(q, kv, kv, need_weights=False)[0].mean(1 if self.batch_first else 0)
        )


ATTENTION = {
    "self": (dict(cross=False), 4),
    "self, time first": (dict(cross=False, batch_first=False), 4),
    "self, without biases": (dict(cross=False, bias=False), 4),
    "cross": (dict(cross=True), 4),
    "cross, time first": (dict(cross=True, batch_first=False), 4),
    "cross, other widths": (dict(cross=True, kdim=2, vdim=2), 2),
    "self, k and v biased": (dict(cross=False, add_bias_kv=True), 4),
}


@pytest.mark.parametrize("way", ATTENTION)
@pytest.mark.parametrize("steps", [2, 3])
def test_attention(way, steps):
    kwargs, width = ATTENTION[way]
    model = half(Attend(**kwargs))
    with torch.no_grad():  # torch starts these at 0
        for name, p in model.attend.named_parameters():
            if "bias" in name:
                p.normal_()
    check(
        model, (randn(B, steps, 4), randn(B, 2, width)) if kwargs["cross"] else randn(B, steps, 4)
    )


class Bare(nn.Module):
    """Parameters of a user's own: class token, positions, scales, products, views, slices."""

    def __init__(self, steps=3):
        super().__init__()
        self.token, self.places = (nn.Parameter(torch.randn(1, n, 4)) for n in (1, steps + 1))
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 1))
        self.w = nn.Parameter(torch.randn(4, 5))
        self.number = nn.Parameter(torch.randn(()))
        self.head = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):  # [B, T, 4]
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        h = torch.tanh(self.scale * h + self.shift.view(4)) * self.number
        h = torch.tanh(h @ self.w)[:, 0]
        return F.linear(input=h, weight=self.head[:, :5])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.usefixtures("_no_fallback")
def test_bare_parameters(steps):
    check(half(Bare(steps)), randn(B, steps, 4))


class Tied(nn.Module):
    """One matrix as itself and transposed, and again in slices."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        h = torch.tanh(F.linear(x, self.w))
        h = torch.tanh(h @ self.w)
        return F.linear(h, self.w.t()) + F.linear(h[:, :2], self.w[:, :2]) + self.w[1]


@pytest.mark.usefixtures("_no_fallback")
def test_a_matrix_in_overlapping_slices():
    check(half(Tied()), randn(B, 3))


class Twice(nn.Module):
    """One Linear called three times, one convolution twice on different sizes, one unused."""

    def __init__(self):
        super().__init__()
        self.fc, self.conv = nn.Linear(4, 4), nn.Conv2d(1, 1, 2)
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):  # [B, 4, 4]
        self.fc(x.new_zeros(2, 4))  # a use that does not reach the output
        h = torch.tanh(self.fc(torch.tanh(self.fc(x))))
        h = self.conv(torch.tanh(self.conv(h.unsqueeze(1)))).squeeze(1)
        return self.head(torch.tanh(self.fc(h.flatten(1))))


def test_modules_called_several_times():
    model, x = half(Twice()), randn(B, 4, 4)
    check(model, x)
    assert (
        dither.explicit(dither.inject(model, Weight(1.0)), x, torch.arange(3)).by_site[
            "unused.weight"
        ]
        == 0
    )


def test_operands_overwritten_after_their_use():
    class InPlace(nn.Module):
        """Legal without gradients for the parameter: its operand is gone by the backward."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            h = torch.tanh(x)
            z = self.fc(h)
            h.mul_(0)
            return z

    injected = dither.inject(half(InPlace()), Weight(0.1))
    for batch in (1, B):  # a sample by itself is not examined
        x, y = randn(batch, 3), torch.arange(batch)
        for on in (True, False):
            with (
                torch.set_grad_enabled(on),
                pytest.raises(RuntimeError, match="modified by an inplace operation"),  # torch's
            ):
                dither.explicit(injected, x, y)


def test_channels_last_weights():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    check(half(model).to(memory_format=torch.channels_last), randn(B, 2, 3, 3))


def test_frozen_parameters_have_their_share():
    """Noise on what is not trained counts as well; the parameter itself stays frozen."""
    for make, shape in (LAYERS["linear"], FALLBACK["prelu"], FALLBACK["squares"], FALLBACK["lstm"]):
        x, y = randn(B, *shape), torch.arange(3)
        model = half(Head(make(), x))
        injected = dither.inject(model, Weight(0.2), seed=0)
        truth = dither.explicit(injected, x, y).R.detach()
        truth_full = dither.explicit(injected, x, y, curvature="full").R.detach()
        model.requires_grad_(False)
        close(dither.explicit(injected, x, y).R, truth)
        close(dither.explicit(injected, x, y, curvature="full").R, truth_full)
        assert not any(p.requires_grad for p in model.parameters())
