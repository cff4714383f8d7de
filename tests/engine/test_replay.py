"""Columns pulled back by hand against autograd: every rule, and where there is none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dither import Additive, DitherError, Multiplicative, Weight, explicit, inject
from dither.engine import backward_rules
from dither.engine import replay as module
from dither.engine.certificate import Learnt
from dither.engine.replay import Replay
from dither.engine.tap import Ear, Tap

K = 5


def replays(noisy):
    """Whether a replay stands for autograd, for each kind of graph that was examined."""
    return [known.replay for known in noisy.layouts.values() if isinstance(known, Learnt)]


def net(*layers):
    return nn.Sequential(*layers).double().eval()


def moved(bn):
    """BatchNorm with statistics and a scale of its own."""
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        bn.weight.normal_()
    return bn


class Broadcast(nn.Module):
    """Parts of a sample spread over the others: their gradients are sums."""

    def __init__(self):
        super().__init__()
        self.one, self.many, self.mixed = nn.Linear(5, 1), nn.Linear(5, 3), 0.0

    def forward(self, h):  # [B, 5]
        one, many = self.one(h), self.many(h)
        mean = (many.mean(0) + one.mean()).tanh()  # [3]: of no sample
        return (one + many) * (one - many) / (1 + one.square()) + self.mixed * mean * one


class Attention(nn.Module):
    """Products with activations on both sides, several outputs of one node, a softmax."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.scale = (
            nn.Linear(6, 18),
            nn.LayerNorm(6),
            nn.Parameter(torch.randn(6)),
        )

    def forward(self, h):  # [B, T, 6]
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        h = h + ((q @ k.mT / 3**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        first, second = (h * self.scale).chunk(2, 1)
        return (first * torch.sigmoid(second)).mean(1) - h[:, 0].square().mT.mT


CASES = {
    "linear": lambda: (net(nn.Linear(7, 3, bias=False), nn.Linear(3, 4)), (4, 7)),
    "relu in place": lambda: (net(nn.Linear(7, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)), (4, 7)),
    "elementwise": lambda: (
        net(
            nn.Linear(7, 8),
            nn.GELU(),
            nn.Tanh(),
            nn.SiLU(),
            nn.ELU(),
            nn.Softplus(),
            nn.Linear(8, 4),
        ),
        (4, 7),
    ),
    "convolutions": lambda: (
        net(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2),
            moved(nn.BatchNorm2d(8)),
            nn.LeakyReLU(),
            nn.Conv2d(8, 8, 3, groups=4, padding="same"),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        ),
        (4, 3, 11, 9),
    ),
    "1 and 3 dimensions": lambda: (
        net(
            nn.Conv1d(2, 6, 3),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Unflatten(1, (6, 1, 1)),
            nn.Conv3d(6, 2, (1, 1, 2)),
        ),
        (4, 2, 11),
    ),
    "max pooling after ReLU": lambda: (
        net(
            nn.Conv2d(5, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 2),
            nn.MaxPool2d(2, padding=1),
        ),
        (4, 5, 9, 11),
    ),
    "overlapping pooling": lambda: (
        net(nn.Conv2d(5, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2)),
        (4, 5, 9, 11),
    ),
    "broadcast": lambda: (Broadcast().double().eval(), (4, 5)),
    "attention": lambda: (Attention().double().eval(), (4, 4, 6)),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    model, shape = CASES[request.param]()
    return model, torch.randn(shape).double()


def pulled(model, x):
    """(z, Replay, what its taps catch): a tap at the input, and one that two branches lead to."""
    caught = []
    anchor = torch.zeros((), requires_grad=True)
    ear = Ear()
    ear.listener = lambda n, g: caught.append(g.clone())
    h = Tap.apply(x, anchor, ear, 0, False, False)
    return model(h) + model(h.clone()).square(), caught, anchor


@pytest.mark.parametrize("chunk", [1, 2, 4, K])  # 4: as many as samples
def test_columns_are_those_of_autograd(case, chunk):
    model, x = case
    if isinstance(model, Broadcast):
        model.mixed = 1.0
    z, caught, anchor = pulled(model, x)
    columns = torch.randn(K, *z.shape).double()
    for column in columns:
        torch.autograd.grad(z, anchor, column, retain_graph=True, allow_unused=True)
    true = torch.cat(caught)
    caught.clear()
    replay = Replay(z, K)
    assert replay.fits
    for part in columns.split(chunk):
        replay(part.clone())
    torch.testing.assert_close(torch.cat(caught), true, rtol=1e-11, atol=1e-12)
    caught.clear()
    Replay(z, 1)(columns[:1])  # nothing is worked out beforehand for a single column
    torch.testing.assert_close(caught[0], true[:1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "noise", [Additive(0.3), Multiplicative(0.3), Weight(0.3)], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("elements", [1, 600, 2**30])
def test_R_by_hand_is_R_by_autograd(case, noise, elements, monkeypatch):
    model, x = case
    model = nn.Sequential(model, nn.Flatten(), nn.LazyLinear(4)).eval()
    model(x.float()) if x.dtype == torch.float32 else model.double()(x)
    y = torch.tensor([0, 1, 2, 3])
    monkeypatch.setattr(module, "ELEMENTS", elements)
    noisy = inject(model, noise)
    with torch.no_grad():
        fast = explicit(noisy, x, y)
    assert replays(noisy) == [True]
    monkeypatch.setattr(module, "ALONE", -1.0)
    slow = explicit(noisy, x, y)  # differentiable, one column after another: by autograd
    for name, share in slow.by_site.items():
        torch.testing.assert_close(fast.by_site[name], share.detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("noise", [Additive(0.3), Weight(0.3)], ids=lambda n: type(n).__name__)
def test_R_by_hand_is_differentiated_as_R_by_autograd(case, noise, monkeypatch):
    model, x = case
    model = nn.Sequential(model, nn.Flatten(), nn.LazyLinear(4)).double().eval()
    model(x)
    y = torch.tensor([0, 1, 2, 3])
    noisy = inject(model, noise)
    parameters = list(model.parameters())

    def slopes(columns, alone):
        monkeypatch.setattr(module, "ELEMENTS", columns)
        monkeypatch.setattr(module, "ALONE", alone)
        R = explicit(noisy, x, y).R
        return torch.autograd.grad(R, parameters, allow_unused=True)

    slow = slopes(1, 1.0)
    assert not any(replays(noisy))
    fast = slopes(2**30, 1.0)
    assert True in replays(noisy)
    for a, b in zip(fast, slow, strict=True):
        assert (a is None) == (b is None) or not (a if b is None else b).any()
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_rule_that_is_wrong_is_found_out(monkeypatch):
    """By a thousandth: R is then autograd's."""
    right = backward_rules.relu

    def wrong(step, total):
        rule = right(step, total)
        return lambda g, own: ([1.001 * part for part in rule(g, own)[0]], False)

    noisy = inject(net(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)), Additive(1.0))
    x, y = torch.randn(4, 3).double(), torch.arange(4)
    with torch.no_grad():
        true = explicit(noisy, x, y).by_site
        noisy.layouts.clear()
        monkeypatch.setitem(backward_rules.RULES, "ReluBackward0", wrong)
        found = explicit(noisy, x, y).by_site
    assert replays(noisy) == [False]
    for name, R in true.items():
        assert found[name].item() == pytest.approx(R.item(), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 4])  # a sample by itself is not examined
def test_a_gradient_that_a_use_still_reads_is_not_added_to(batch):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 5)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h) + h  # one gradient comes back to b, and to h, where b's is added

    noisy = inject(Residual().double(), Weight(1.0))
    x, y = torch.randn(batch, 3).double(), torch.arange(batch)
    recorded = explicit(noisy, x, y).by_site  # nothing is overwritten where it is recorded
    with torch.no_grad():
        found = explicit(noisy, x, y).by_site
    for name, R in recorded.items():
        assert found[name].item() == pytest.approx(R.item(), rel=1e-12)


def test_a_norm_that_is_wrong_is_found_out(monkeypatch):
    """Of a product that is not formed, by a thousandth: R is then autograd's."""
    right = backward_rules.Product.norm2
    noisy = inject(net(nn.Linear(256, 6)), Additive(1.0))
    x, y = torch.randn(4, 256).double(), torch.arange(4)
    with torch.no_grad():
        true = explicit(noisy, x, y).R
        assert replays(noisy) == [True]
        noisy.layouts.clear()
        monkeypatch.setattr(backward_rules.Product, "norm2", lambda self: 1.001 * right(self))
        found = explicit(noisy, x, y).R
    assert replays(noisy) == [False]
    assert found.item() == pytest.approx(true.item(), rel=1e-12)


def test_a_hook_that_changes_gradients_is_refused():
    class Doubled(nn.Module):
        def forward(self, h):
            h = h * 1
            if h.requires_grad:
                h.register_hook(lambda g: 2 * g)
            return h

    torch.manual_seed(0)
    model = net(nn.Linear(3, 5), Doubled(), nn.Linear(5, 4))
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 3])
    noisy = inject(model, Additive(1.0))
    with torch.no_grad(), pytest.raises(DitherError, match=r"'0:in': .* its gradients say"):
        explicit(noisy, x, y)
    assert not any(replays(noisy))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("by", ["tensor", "node"])
@pytest.mark.parametrize("noise", [Additive(1.0), Weight(1.0)], ids=lambda n: type(n).__name__)
def test_a_hook_that_comes_later_counts(noise, by, recorded):
    """The graph without it is known by then, and the hook is to be seen in no node."""
    torch.manual_seed(0)
    model = net(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 3])
    noisy = inject(model, noise)

    def found():
        with torch.set_grad_enabled(recorded):
            return {name: r.detach() for name, r in explicit(noisy, x, y).by_site.items()}

    def triple(module, args, h):
        if by == "tensor":
            h.register_hook(lambda g: 3 * g)
        else:
            h.grad_fn.register_prehook(lambda g: (3 * g[0],))

    before = found()
    assert True in replays(noisy)
    hook = model[1].register_forward_hook(triple)
    during = found()
    hook.remove()
    for name, r in before.items():
        torch.testing.assert_close(during[name], (9 if name[0] == "0" else 1) * r)
    torch.testing.assert_close(found(), before)


def test_a_graph_is_verified_for_values_and_for_slopes():
    model = net(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 3])
    noisy = inject(model, Additive(1.0))
    with torch.no_grad():
        explicit(noisy, x, y)
    explicit(noisy, x, y)
    assert replays(noisy) == [True, True]


def test_functions_with_a_backward_of_their_own_are_left_to_autograd():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return 2 * h

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    z, _, _ = pulled(Twice.apply, torch.randn(2, 3))
    assert not Replay(z, K).fits


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_recomputed_is_left_to_autograd(reentrant):
    model = net(nn.Linear(3, 4), nn.Tanh()).float()
    z, _, _ = pulled(lambda h: checkpoint(model, h, use_reentrant=reentrant), torch.randn(2, 3))
    assert not Replay(z, K).fits


def test_the_norm_of_a_product_by_the_smaller_matrix():
    """A wide input under few units: the triangular factor of W instead of W."""
    torch.manual_seed(0)
    model = net(nn.Linear(300, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = torch.randn(200, 300).double(), torch.randint(4, (200,))
    noisy = inject(model, {"0": Additive(1.0)})
    with torch.no_grad():
        found = explicit(noisy, x, y).R
    p = (z := model(x)).softmax(1).detach()
    total = 0.0
    for c in range(4):
        column = p[:, c : c + 1].sqrt() * (F.one_hot(torch.tensor(c), 4) - p)
        hidden = (model[0](x) > 0) * (column @ model[2].weight)
        total += (hidden @ model[0].weight).square().sum().item()
    assert found.item() == pytest.approx(total / 2 / len(z), rel=1e-12)
