"""Every way to ‖Σ_t g_t a_tᵀ‖² gives what forming the sum in double precision gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dither import explicit, inject
from dither.engine import conv_norms as patches
from dither.engine import outer_norms as contract
from dither.engine.conv_norms import Patch, pixels
from dither.engine.outer_norms import by_factor, by_gram, cheapest, gram, root
from dither.noise import Weight

GEOMETRIES = [
    {"padding": (1, 1)}, {}, {"stride": (2, 2), "padding": (2, 2)},
    {"dilation": (2, 2), "padding": (2, 1)}, {"stride": (1, 3), "padding": (3, 3)},
]  # fmt: skip
KERNELS = [(3, 3), (2, 3), (5, 2), (4, 4), (1, 3), (1, 1), (5, 5)]


def convolution(kernel, how, dtype, size=(13, 12), batch=5):
    """(geometry, image [B, 3, H, W], g [2, B, 4, H', W'], ‖Σ_t g_t a_tᵀ‖² [2, B])."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, *size, dtype=dtype)
    out = F.conv2d(x, torch.zeros(4, 3, *kernel, dtype=dtype), **how).shape[2:]
    given = (how.get(k, n) for k, n in
             (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))))  # fmt: skip
    patch = Patch(kernel, *given, tuple(out))
    g = torch.randn(2, batch, 4, *out, dtype=dtype)
    a = F.unfold(x.double(), kernel, **how)
    return patch, x, g, (g.double().flatten(3) @ a.mT).square().sum((2, 3))


def off(found, true):
    return ((found - true).abs() / true).max().item()


@pytest.mark.parametrize("how", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions(kernel, how, dtype):
    patch, x, g, true = convolution(kernel, how, dtype)
    last = g.flatten(3).mT
    assert off(by_gram(pixels(patch, x), last), true) < (1e-12 if x.dtype.itemsize == 8 else 2e-6)
    assert off(by_factor(root(pixels(patch, x)).to(dtype), last), true) < 1e-5


def test_samples_in_blocks_are_the_samples_at_once(monkeypatch):
    patch, x, _, _ = convolution((3, 3), {"padding": (1, 1)}, torch.float64)
    whole = pixels(patch, x)
    monkeypatch.setitem(patches.BLOCK, "cpu", 1)
    torch.testing.assert_close(pixels(patch, x), whole, rtol=1e-12, atol=1e-12)
    for size in (700, 50_000):
        monkeypatch.setitem(patches.BLOCK, "cpu", size)
        torch.testing.assert_close(pixels(patch, x), whole, rtol=1e-12, atol=1e-12)


def test_the_root_of_a_singular_gram_matrix():
    """Positions that are all 0, and as many channels as positions less five."""
    torch.manual_seed(0)
    a = torch.randn(4, 20, 15).relu()
    a[1] = 0
    a[2, ::2] = 0
    g = torch.randn(3, 4, 20, 6)
    true = (g.double().mT @ a.double()).square().sum((2, 3))
    found = by_factor(root(gram(a)).float(), g)
    scale = a.double().square().sum((1, 2)) * g.double().square().sum((2, 3)) + 1e-20
    assert ((found - true).abs() / scale).max() < 1e-6


def test_a_root_where_rounding_made_the_matrix_indefinite():
    aa = torch.diag_embed(torch.tensor([[4.0, 1.0, -1e-3], [4.0, 1.0, 2.0]]).double())
    r = root(aa.clone())
    torch.testing.assert_close(r.mT @ r, aa.clamp(min=0), rtol=1e-6, atol=1e-6)


def test_a_sample_that_is_not_finite_spoils_only_itself():
    torch.manual_seed(0)
    a = torch.randn(3, 8, 12)
    a[1, 2, 3] = torch.nan
    r = root(gram(a))
    assert r[1].isnan().all()
    assert torch.equal(r[[0, 2]], root(gram(a[[0, 2]])))


CANCEL = [
    (256, 1152, 128, (16, 16), 128, 9),
    (16, 4608, 512, (4, 4), 512, 9),
]


@pytest.mark.parametrize(("t", "i", "o", "size", "channels", "n"), CANCEL)
@pytest.mark.parametrize("recorded", [False, True])
def test_positions_that_cancel(t, i, o, size, channels, n, recorded):
    """Of an image with the same patches everywhere, and gradients that add up to nearly 0: a
    difference of 10⁻³ is met to single precision. Its norm is what rounding is relative to.
    """
    torch.manual_seed(0)
    patch = Patch((3, 3), (1, 1), (1, 1), (1, 1), size)
    x = torch.randn(2, channels, 1, 1).expand(2, channels, *size).contiguous()
    if recorded:
        x.requires_grad_()
    g = torch.randn(1, 2, o, *size)
    g = g - g.mean((-2, -1), keepdim=True) + 1e-3
    way = cheapest(n, t, i, o, x, g, patch)
    assert way is not None
    assert way.name == "pixels"
    a = F.unfold(x.detach().double(), 3, padding=1)
    true = (g.double().flatten(3) @ a.mT).square().sum((2, 3))
    size2 = a.square().sum((1, 2)) * g.double().square().sum((2, 3, 4))
    with torch.no_grad():
        found = way.norm2(way.small(x.detach()), g)
    error = (found.sqrt() - true.sqrt()).abs() / size2.sqrt()
    assert error.max() < 1e-6


class Masked(nn.Module):
    """A convolution of an image with one pixel that is far out; no output that sees it counts."""

    def __init__(self, channels, filters):
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=1)
        self.last = nn.Linear(filters, 10)

    def forward(self, x):
        far = F.max_pool2d((x.abs().amax(1, keepdim=True) >= 50).to(x.dtype), 3, 1, 1) > 0
        return self.last(self.conv(x).masked_fill(far, 0.0).tanh().mean((2, 3)))


@pytest.mark.parametrize("samples", [None, 1])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("shape", [(128, 128, 16), (32, 64, 32)])
def test_a_pixel_that_does_not_count_leaves_no_rounding_error(shape, recorded, samples):
    torch.manual_seed(0)
    channels, filters, size = shape
    model, y = Masked(channels, filters), torch.randint(10, (4,))
    x = torch.randn(4, channels, size, size)
    noisy = inject(model, {"conv.weight": Weight(0.1)})

    def found(big):
        torch.manual_seed(1)
        x[:, :, 3, 4] = big
        with torch.set_grad_enabled(recorded):
            return explicit(noisy, x, y, samples=samples).R.item()

    for big in (1e5, 1e9):
        assert found(big) == pytest.approx(found(1e2), rel=1e-5)


def test_second_derivatives_at_a_norm_that_is_0():
    """Where nothing comes back to the kernel: as by differences."""
    torch.manual_seed(0)
    conv, last = nn.Conv2d(16, 24, 3, padding=1).double(), nn.Linear(24, 5).double()
    model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    nn.init.zeros_(last.weight)
    x, y = torch.randn(2, 16, 32, 32).double(), torch.tensor([1, 3])
    noisy = inject(model, {"0.weight": Weight(1.0)})
    v = torch.randn_like(last.weight)

    def slope():
        R = explicit(noisy, x, y).R
        return (torch.autograd.grad(R, last.weight, create_graph=True)[0] * v).sum()

    curvature = (torch.autograd.grad(slope(), last.weight)[0] * v).sum()
    with torch.no_grad():
        last.weight += 1e-4 * v
    assert curvature.item() == pytest.approx(slope().item() / 1e-4, rel=1e-5)
    assert curvature > 0


def test_gradients_where_positions_are_alike():
    """Two tokens of three are the same: a factor would have no slope there."""
    torch.manual_seed(0)
    body, last = nn.Linear(40, 50).double(), nn.Linear(50, 5).double()
    scale = torch.ones(40, dtype=torch.float64, requires_grad=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = body, last

        def forward(self, x):
            return self.last(self.body(x).tanh().mean(1))

    noisy, y = inject(Net(), {"body.weight": Weight(1.0)}), torch.tensor([1, 3])
    x = torch.randn(2, 3, 40).double()
    x[:, 1] = x[:, 0]

    def R():
        return explicit(noisy, x * scale, y).R

    slope = torch.autograd.grad(R(), scale)[0]
    v = torch.randn_like(scale)
    with torch.no_grad():
        scale += 1e-5 * v
        up = R()
        scale -= 2e-5 * v
        down = R()
    assert (slope @ v).item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-6)


class Block(nn.Module):
    """Convolutions that go each their own way: by pixels, formed, strided, pointwise."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 40, 3, padding=1), nn.ReLU(),
            nn.Conv2d(40, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 48, 5, stride=2), nn.ReLU(),
            nn.Conv2d(48, 12, 1), nn.ReLU(), nn.Conv2d(12, 96, 3, padding=1), nn.ReLU(),
            nn.Conv2d(96, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(256, 5),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("samples", [None, 1])
def test_of_a_network_all_ways_are_those_of_the_sum(samples, monkeypatch):
    torch.manual_seed(0)
    model, x, y = Block(), torch.randn(6, 3, 20, 20), torch.randint(5, (6,))
    noisy = inject(model, Weight(0.1), seed=0)

    def found(x, recorded):
        torch.manual_seed(1)
        with torch.set_grad_enabled(recorded):
            got = explicit(noisy, x, y, samples=samples)
            slopes = torch.autograd.grad(got.R, [*model.parameters()]) if recorded else ()
        return torch.stack([*got.by_site.values()]).detach(), slopes

    taken, counts = set(), set()
    choose = contract.cheapest

    def noted(*args):
        way = choose(*args)
        taken.add(way and way.name)
        counts.add(args[0])
        return way

    for place in ("ghost", "kinds"):
        monkeypatch.setattr(f"dither.engine.{place}.cheapest", noted)
    shares, _ = found(x, recorded=False)
    assert taken == {None, "pixels"}
    assert max(counts) == (samples or 4)  # columns: for the way is made once for all
    recorded, slopes = found(x, recorded=True)
    for place in ("ghost", "kinds"):
        monkeypatch.setattr(f"dither.engine.{place}.cheapest", lambda *_: None)
    model.double()
    true, true_slopes = found(x.double(), recorded=True)
    torch.testing.assert_close(shares.double(), true, rtol=1e-5, atol=0)
    torch.testing.assert_close(recorded.double(), true, rtol=1e-5, atol=0)
    for slope, other in zip(slopes, true_slopes, strict=True):
        assert (slope - other).norm() < 1e-4 * other.norm() + 1e-9


@pytest.mark.parametrize("samples", [None, 1])
def test_in_double_precision_all_is_to_double_precision(samples, monkeypatch):
    torch.manual_seed(0)
    model, x, y = Block().double(), torch.randn(3, 3, 20, 20).double(), torch.randint(5, (3,))
    noisy = inject(model, Weight(0.1), seed=0)

    def found():
        torch.manual_seed(1)
        with torch.no_grad():
            return torch.stack([*explicit(noisy, x, y, samples=samples).by_site.values()])

    ours = found()
    for place in ("ghost", "kinds"):
        monkeypatch.setattr(f"dither.engine.{place}.cheapest", lambda *_: None)
    torch.testing.assert_close(ours, found(), rtol=1e-11, atol=0)


def test_what_is_kept_for_the_columns_is_what_is_made_for_each(monkeypatch):
    torch.manual_seed(0)
    model, x, y = Block(), torch.randn(6, 3, 20, 20), torch.randint(5, (6,))
    noisy = inject(model, Weight(0.1), seed=0)

    def found():
        with torch.no_grad():
            return torch.stack([*explicit(noisy, x, y).by_site.values()])

    kept = found()
    monkeypatch.setattr("dither.engine.kinds.KEPT", 0)
    torch.testing.assert_close(found(), kept, rtol=1e-5, atol=0)
