"""Keyed draws: each law's moments and mirror image, independence. N is fixed, alarms are stated."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither.noise import Here, TwoGaussian, fill
from dither.noise.draw import Basis, Signs, Source, key
from dither.noise.noises import plus

LAWS = {
    "gaussian": dither.gaussian,
    "uniform": dither.uniform,
    "two_point": dither.two_point,
    "two_gaussian": TwoGaussian(0.3),
    "dropout": dither.dropout(0.3),
}
N = 200_000
ALARM = 4.9  # standard errors: a fair draw gives a false alarm once in a million
every_law = pytest.mark.parametrize("name", LAWS)


def sample(law, *words, n=N):
    return Source([key(*words)])(law, torch.empty(n, dtype=torch.float64))


@every_law
def test_mean_and_variance(name):
    law = LAWS[name]
    e = sample(law, "moments", name)
    assert e.mean().abs() < ALARM * math.sqrt(law.variance / N)
    spread = e.square().std() / math.sqrt(N)
    assert (e.square().mean() - law.variance).abs() <= ALARM * spread + 1e-12


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("law", [*LAWS.values(), dither.dropout(0.001)], ids=repr)
def test_mean_and_variance_in_every_type(law, dtype):
    """Two million draws: the grid of a half type must not show."""
    n = 2_000_000
    e = Source([key("type")])(law, torch.empty(n, dtype=dtype)).double()
    assert e.mean().abs() < ALARM * math.sqrt(law.variance / n)
    spread = e.square().std() / math.sqrt(n)
    rounding = 2 * torch.finfo(dtype).eps * law.variance
    assert (e.square().mean() - law.variance).abs() <= ALARM * spread + rounding


@pytest.mark.parametrize(
    ("name", "fourth"),  # E ε⁴, which tells the laws apart
    [
        ("gaussian", 3.0),
        ("uniform", 1 / 5),
        ("two_point", 1.0),
        ("two_gaussian", 1 + 6 * 0.3**2 + 3 * 0.3**4),
        ("dropout", 0.7 * (3 / 7) ** 4 + 0.3),
    ],
)
def test_fourth_moment(name, fourth):
    e = sample(LAWS[name], "fourth", name).pow(4)
    assert (e.mean() - fourth).abs() <= ALARM * e.std() / math.sqrt(N) + 1e-12


@every_law
def test_reflect_is_the_mirror_image(name):
    """Symmetric laws: −ε. Dropout: kept where u ≥ p becomes kept where 1 − u ≥ p."""
    law, like = LAWS[name], torch.empty(1000, dtype=torch.float64)
    draw = Source([key(name)])(law, like)
    mirror = Source([key(name)], reflect=True)(law, like)
    if name == "dropout":
        u = Source([key(name)]).uniform(like)
        assert torch.equal(mirror > 0, 1 - u >= law.p)
        assert torch.equal(draw > 0, u >= law.p)
    else:
        torch.testing.assert_close(mirror, -draw, rtol=0, atol=1e-15)


def test_signs_are_independent_bits():
    """All 2016 correlations of 64 neighbours, N = 20 000; alarm 2016 in a million."""
    e = sample(dither.two_point, "bits", n=64 * 20_000).view(-1, 64)
    correlation = torch.corrcoef(e.T) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < ALARM / math.sqrt(20_000)


@every_law
def test_a_draw_does_not_depend_on_how_memory_is_laid_out(name):
    like = torch.empty(2, 3, 5, 5)
    last = like.to(memory_format=torch.channels_last)
    a, b = Source([1])(LAWS[name], like), Source([1])(LAWS[name], last)
    assert b.stride() == last.stride()
    assert torch.equal(a, b)


def test_keys_tell_words_apart():
    assert key(1, "a") == key(1, "a")
    assert key("a", "b") != key("ab")
    assert len({key(s, n, t) for s in range(10) for n in "abc" for t in range(100)}) == 3000
    assert all(0 <= key(i) < 2**63 for i in range(1000))


def test_sites_and_steps_are_independent():
    """All 276 correlations of 24 draws (4 sites × 6 steps), N = 20 000; alarm 276 in a million."""
    n = 20_000
    e = torch.stack([sample(dither.gaussian, 0, s, t, n=n) for s in "abcd" for t in range(6)])
    correlation = torch.corrcoef(e) - torch.eye(24, dtype=torch.float64)
    assert correlation.abs().max() < ALARM / math.sqrt(n)


def test_an_injection_draws_independently():
    """δ as two sites see it in 400 steps, 6 elements each: 66 correlations, 66 in a million."""
    rows = []
    model = nn.Sequential(nn.Identity(), nn.Identity()).double()
    dither.inject(model, {"*:out": dither.Additive(1.0)}, seed=0)
    model[0].register_forward_hook(lambda m, a, z: rows.append(z.flatten()))
    x = torch.zeros(3, 2, dtype=torch.float64)
    both = torch.stack([model(x).flatten() for _ in range(400)])
    first = torch.stack(rows)
    e = torch.cat([first, both - first], 1)  # [400, 12]
    correlation = torch.corrcoef(e.T) - torch.eye(12, dtype=torch.float64)
    assert correlation.abs().max() < ALARM / math.sqrt(400)


def test_replicas_of_a_stack_draw_what_serial_runs_draw():
    like = torch.empty(3, 5, 2)
    stacked = Source([key(s) for s in (4, 5, 6)]).normal(like)
    for s, row in zip((4, 5, 6), stacked, strict=True):
        assert torch.equal(Source([key(s)]).normal(like[0]), row)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_law
def test_draws_take_the_type_and_leave_the_tensor_alone(name, dtype):
    like = torch.full((4, 3), 7.0, dtype=dtype, requires_grad=True)
    e = Source([1])(LAWS[name], like)
    assert e.dtype == dtype
    assert not e.requires_grad
    assert (like == 7).all()


def test_the_basis_sums_to_the_covariance():
    like = torch.empty(2, 3, 2, dtype=torch.float64)
    axes = torch.stack([Basis(k, 1)(dither.uniform, like)[0].flatten() for k in range(6)])
    torch.testing.assert_close(axes.T @ axes, torch.eye(6, dtype=torch.float64) / 3)


def test_signs_have_the_variance_of_the_law():
    e = Signs()(dither.uniform, torch.empty(1000, dtype=torch.float64))
    torch.testing.assert_close(e.square(), torch.full_like(e, 1 / 3))
    assert e.mean().abs() < ALARM * math.sqrt(1 / 3000)


# ------------------------------------------------------------- long tensors, filled in pieces

LENGTHS = [fill.LONG, fill.LONG + 1, fill.PIECE + 7, 3 * fill.PIECE + 12345]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("write", [fill.normal, fill.uniform])
def test_a_long_fill_reaches_every_element_and_repeats(write, n):
    def once(seed):
        return write(torch.full((n,), torch.nan), torch.Generator().manual_seed(seed))

    assert once(0).isfinite().all()
    assert torch.equal(once(0), once(0))
    assert (once(0) != once(1)).float().mean() > 0.99
    values = {fill.normal: fill.CELLS, fill.uniform: 2**24}[write]
    there = values * -math.expm1(-n / values)  # of so many, in n draws
    assert once(0).unique().numel() > 0.98 * there


def test_a_long_normal_has_the_tails_of_one():
    """Exceedances of 0, 1 … 5 standard deviations on either side among 40 million draws, in
    binomial standard errors; 12 numbers, alarm 12 in a million.
    """
    n, pieces = 40_000_000, 10
    generator, counts = torch.Generator().manual_seed(11), torch.zeros(2, 6)
    for _ in range(pieces):
        e = fill.normal(torch.empty(n // pieces), generator)
        counts += torch.tensor([[(s * e > k).sum() for k in range(6)] for s in (1, -1)])
    for row in counts:
        for k, count in enumerate(row.tolist()):
            p = math.erfc(k / math.sqrt(2)) / 2
            assert abs(count - n * p) < ALARM * math.sqrt(n * p * (1 - p)), k


def test_a_long_normal_follows_its_law_everywhere():
    """Kolmogorov's distance of 4 million draws; 2.75/√n is passed once in a million."""
    e = fill.normal(torch.empty(4_000_000), torch.Generator().manual_seed(3)).double().sort().values
    cdf = torch.special.ndtr(e)
    k = torch.arange(1, len(e) + 1) / len(e)
    assert max((cdf - k).abs().max(), (cdf - k + 1 / len(e)).abs().max()) < 2.75 / len(e) ** 0.5


def test_a_long_normal_follows_its_law_in_the_tails():
    """The same beyond ±2.5, on both sides of 3, where the table ends: 20 million draws, of which
    1.2 % are there.
    """
    e = fill.normal(torch.empty(20_000_000), torch.Generator().manual_seed(5)).double()
    for side in (e, -e):
        far = side[side > 2.5].sort().values
        cdf = 1 - torch.special.ndtr(-far) / torch.special.ndtr(torch.tensor(-2.5).double())
        k = torch.arange(1, len(far) + 1) / len(far)
        assert max((cdf - k).abs().max(), (cdf - k + 1 / len(far)).abs().max()) < (
            2.75 / len(far) ** 0.5
        )


def test_the_table_of_a_long_normal_has_its_moments():
    """With the tails beside it: mean 0 to the bit, and variance 1."""
    x = torch.from_numpy(fill._body()).double()
    assert torch.equal(x, -x.flip(0))
    c, q = fill.BODY, fill.BEYOND
    beyond = q + 2 * c * math.exp(-c * c / 2) / math.sqrt(2 * math.pi)  # E x² where |x| > c
    assert abs((1 - q) * x.square().mean() + beyond - 1) < 1e-8
    edges = torch.special.ndtri(
        q / 2 + (1 - q) * torch.arange(fill.CELLS + 1).double() / fill.CELLS
    )
    assert (edges[:-1] < x).all()
    assert (x < edges[1:]).all()


def test_the_places_of_the_tails_are_tosses_of_a_coin():
    """Each place, the first and the last too, as often as it should be; their number's spread; and
    one place says nothing about the next.
    """
    n, p, rows, bits = 60, 0.2, 20_000, np.random.SFC64(1)
    tosses = torch.zeros(rows, n)
    for row in tosses:
        row[torch.from_numpy(fill._places(n, p, bits))] = 1
    variance = p * (1 - p)
    assert ((tosses.mean(0) - p).abs() < ALARM * math.sqrt(variance / rows)).all()  # .014
    assert tosses.sum(1).var() == pytest.approx(n * variance, rel=ALARM * math.sqrt(2 / rows))
    apart = tosses - p
    for lag in range(1, 6):
        products = apart[:, lag:] * apart[:, :-lag]
        assert products.mean().abs() < ALARM * variance / math.sqrt(products.numel())


def test_the_gaps_between_the_places_of_the_tails_are_geometric():
    """Their mean 1/p, and the share of gaps of 1."""
    p, n = fill.BEYOND, 20_000_000
    gaps = torch.from_numpy(np.diff(fill._places(n, p, np.random.SFC64(2)))).double()
    sem = math.sqrt((1 - p) / len(gaps))
    assert (gaps.mean() * p - 1).abs() < ALARM * sem
    assert ((gaps == 1).double().mean() - p).abs() < ALARM * math.sqrt(p * (1 - p) / len(gaps))


def test_no_bits_make_a_normal_infinite():
    class Bits:
        def __init__(self, word):
            self.word = word

        def random_raw(self, n):
            return np.full(n, self.word, np.uint64)

    for word in (0, 2**63 - 1, 2**63, 2**64 - 1):
        u = fill._units52(3, Bits(word))
        assert ((u > 0) & (u < 1) & (u != 0.5)).all()


def test_neighbours_in_a_long_normal_are_independent():
    """Four of them share a word: E x y = E x³y = 0, E x²y² = 1, E x⁴y⁴ = 9."""
    e = fill.normal(torch.empty(30, fill.PIECE), torch.Generator().manual_seed(4)).double()
    for lag in (1, 2, 3, fill.PIECE // 2):
        x, y = e[:, lag:].flatten(), e[:, :-lag].flatten()
        for product, truth in ((x * y, 0), (x**2 * y**2, 1), (x**3 * y, 0), (x**4 * y**4, 9)):
            sem = product.std() / math.sqrt(len(x) / 2)  # neighbours' products are dependent
            assert (product.mean() - truth).abs() < ALARM * sem


def test_long_draws_of_neighbours_sites_and_steps_are_independent():
    """Lags 1 … 64 of one draw, and 66 correlations of 12 draws; alarm 130 in a million."""
    n = fill.LONG
    e = torch.stack(
        [Source([key(0, s, t)]).normal(torch.empty(n)) for s in "abc" for t in range(4)]
    ).double()
    correlation = torch.corrcoef(e) - torch.eye(12, dtype=torch.float64)
    assert correlation.abs().max() < ALARM / math.sqrt(n)
    for lag in range(1, 65):
        assert (e[0, lag:] * e[0, :-lag]).mean().abs() < ALARM / math.sqrt(n - lag)


@pytest.mark.parametrize("noise", [dither.Additive, dither.Multiplicative, dither.Weight], ids=str)
@pytest.mark.parametrize("law", [dither.gaussian, dither.dropout(0.2)], ids=str)
def test_plus_is_the_tensor_and_its_displacement(noise, law):
    h = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    here, g = Here(h), torch.randn(5, 7, dtype=torch.float64)
    sums = [
        h + noise(0.3, law).displace(here, Source([1])),
        plus(noise(0.3, law), here, Source([1])),
        plus(noise(0.6, law), here, Source([1]), 0.5),
    ]
    slopes = [torch.autograd.grad(s, h, g)[0] for s in sums]
    for got, slope in zip(sums, slopes, strict=True):
        torch.testing.assert_close(got, sums[0])
        torch.testing.assert_close(slope, slopes[0])


class Clipped(dither.Additive):
    def displace(self, site, rng):
        return super().displace(site, rng).clamp(-0.01, 0.01)


class Table:
    """A law that hands out memory of its own."""

    variance = 1.0

    def __init__(self):
        self.table = torch.ones(8, 4)

    def sample(self, source, like):
        return self.table


def test_a_subclass_displaces_its_own_way():
    h = torch.zeros(100)
    assert plus(Clipped(1.0), Here(h), Source([1])).abs().max() <= 0.01


def test_what_a_law_returns_is_not_written_over():
    law, model = Table(), nn.Linear(4, 2)
    dither.inject(model, dither.Additive(0.5, law))
    model(torch.randn(8, 4))
    assert (law.table == 1).all()


@pytest.mark.parametrize("width", [3, fill.LONG // 4])
def test_displaced_tensors_may_be_differentiated_by_torch_func_and_batching_is_refused(width):
    model, x = nn.Linear(width, 4), torch.randn(5, width)
    fill._body.cache_clear()  # as in a process that draws here first
    for what in (dither.Additive(0.1), dither.Weight(0.1)):
        with dither.inject(model, what, seed=0):

            def loss(weight, one, model=model):
                return torch.func.functional_call(model, {"weight": weight}, (one,)).sum()

            slope = torch.func.grad(loss)(model.weight.detach(), x[0])
            weights = torch.stack([model.weight.detach()] * 5)
            with pytest.raises(dither.DitherError, match="all samples would share one draw"):
                torch.func.vmap(torch.func.grad(loss), randomness="same")(weights, x)
        torch.testing.assert_close(slope, x[0].expand(4, width), atol=1.0, rtol=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_displaced_without_bias(dtype):
    """1 + σε is rounded to a coarse grid; h + σhε is not. N fixed, alarm once in a million."""
    h = torch.full((200_000,), 1.5, dtype=dtype)
    delta = plus(dither.Multiplicative(0.003), Here(h), Source([1])).double() - h.double()
    assert delta.mean().abs() < ALARM * delta.std() / math.sqrt(len(h))


def test_long_draws_know_nothing_of_torchs_defaults():
    def drawn():
        return Source([5]).normal(torch.empty(fill.LONG, dtype=torch.float32, device="cpu"))

    before = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, again)
