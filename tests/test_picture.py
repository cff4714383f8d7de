"""What results draw of themselves: their numbers, in place, and one sentence without matplotlib."""

import sys

import matplotlib as mpl
import pytest
import torch
from torch import nn

import dither
from dither import measures
from dither.measures import calibration
from dither.regulariser.explicit import MOST, Explicit

mpl.use("Agg")
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(40) % 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def explicit():
    return dither.explicit(dither.inject(net(), dither.Weight(0.1)), X, Y)


def reliability():
    return calibration.reliability((9 * net()(X)).softmax(-1), Y, bins=6)


def eigenvalues(**at):
    return measures.eigenvalues(net(), "cross_entropy", (X, Y), k=3, **at)


def density():
    return measures.density(net(), "cross_entropy", (X, Y), probes=2, steps=4)


RESULTS = {f.__name__: f for f in (explicit, reliability, eigenvalues, density)}


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


@pytest.mark.parametrize("name", RESULTS)
def test_a_plot_is_a_figure_or_goes_into_axes(name):
    import matplotlib.pyplot as plt

    found = RESULTS[name]()
    figure = found.plot()
    assert plt.gcf() is figure
    both, (left, right) = plt.subplots(1, 2)
    assert found.plot(right) is both
    assert right.get_xlabel() == figure.axes[0].get_xlabel() != ""
    assert not left.has_data()
    for drawn in (figure, both):
        drawn.canvas.draw()  # whatever matplotlib cannot draw, it raises here


@pytest.mark.parametrize("name", RESULTS)
def test_without_matplotlib_it_says_so(name, monkeypatch):
    found = RESULTS[name]()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(dither.DitherError, match=r"needs the package matplotlib.*dither\[lab\]"):
        found.plot()


def bars(found) -> dict[str, float]:
    """{label: length} of horizontal bars, from above."""
    (ax,) = found.plot().axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    lengths = {bar.get_y(): bar.get_width() for bar in ax.patches}
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    return dict(zip(labels, [lengths[y] for y in sorted(lengths)], strict=True))


def test_bars_are_the_shares_of_R_in_the_order_of_the_model():
    found = explicit()
    drawn = bars(found)
    assert list(drawn) == list(found.by_site) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert drawn == {name: part.item() for name, part in found.by_site.items()}


@pytest.mark.parametrize("n", [MOST, MOST + 1, 200])
def test_many_sites_are_the_largest_and_a_sum_of_the_others(n):
    size = torch.randperm(n) - 3.0  # a share of curvature="full" may be below 0
    by_site = {f"{i}:in": part for i, part in enumerate(size)}
    drawn = bars(Explicit(torch.tensor(1.0), size.sum(), by_site))
    assert len(drawn) == MOST
    assert sum(drawn.values()) == size.sum()
    if n > MOST:
        assert list(drawn)[-1] == f"{n - MOST + 1} others"
        rest = set(by_site) - set(drawn)
        least = min(abs(length) for name, length in drawn.items() if name in by_site)
        assert max(abs(by_site[name]) for name in rest) <= least


def test_points_are_the_accuracy_of_the_bins_with_examples():
    found = reliability()
    (ax,) = found.plot().axes
    some = found.count > 0
    assert 0 < some.sum() < 6
    (points,) = (line for line in ax.lines if line.get_marker() == "o")
    assert points.get_xdata().tolist() == found.confidence[some].tolist()
    assert points.get_ydata().tolist() == found.accuracy[some].tolist()
    (lengths,) = ax.collections  # the bars: ± 2 √v/n
    low, high = torch.tensor([line[:, 1].tolist() for line in lengths.get_segments()]).T
    torch.testing.assert_close(
        (high - low).double(), 4 * (found.variance.sqrt() / found.count)[some], rtol=1e-5, atol=0
    )
    assert [bar.get_height() for bar in ax.patches] == found.share.tolist()


@pytest.mark.parametrize(("at", "rows"), [({}, 1), ({"at": "0:in"}, 40)])
def test_eigenvalues_are_dots_one_row_for_each_sample(at, rows):
    found = eigenvalues(**at)
    (ax,) = found.plot().axes
    drawn = [line.get_ydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert drawn == found.value.reshape(rows, 3).tolist()
