import io
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from dither.papers import style


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1, 60, {"1", "2", "5", "10", "20", "50"}),
        (1, 600, {"1", "3", "10", "30", "100", "300"}),
        (0.5, 100, {"1", "3", "10", "30", "100"}),
        (0.0025, 0.0095, {"0.003", "0.005", "0.007"}),
        (1, 1.5, {"1.05", "1.20", "1.35"}),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_that_do_not_crowd(which, low, high, said):
    picture, axes = style.grid(1, 1)
    ax = axes[0, 0]
    ends = ([low, high], [1, 1])
    ax.plot(*(ends if which == "x" else ends[::-1]))
    style.logarithmic(ax, which)
    picture.savefig(io.BytesIO(), format="png")
    axis = getattr(ax, f"{which}axis")
    shown = [
        tick.label1.get_text()
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low <= tick.get_loc() <= high
    ]
    assert set(shown) == said


@pytest.mark.parametrize("span", [(2.303, 2.297), (0.4, 3.0), (0.01, 50.0), (1e-9, 1e5)])
def test_numbers_on_a_logarithmic_axis_never_overprint(span):
    picture = Figure(figsize=(4, 3))
    ax = picture.subplots()
    ax.plot([0, 1], span)
    style.logarithmic(ax, "y")
    picture.canvas.draw()
    labels = [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]
    inside = [b for b in labels if b.get_text() and _within(ax, b.get_position()[1])]
    boxes = sorted(b.get_window_extent().intervaly.tolist() for b in inside)
    assert 2 <= len(boxes) < 8
    assert len({b.get_text() for b in inside}) == len(inside)
    assert all(low[1] <= high[0] for low, high in pairwise(boxes))


def _within(ax, y):
    low, high = ax.get_ylim()
    return low <= y <= high
