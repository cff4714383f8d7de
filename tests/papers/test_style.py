import io

import pytest

from dither.papers import style


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1, 60, {"1", "2", "5", "10", "20", "50"}),
        (1, 600, {"1", "3", "10", "30", "100", "300"}),
        (0.0025, 0.0095, {"0.003", "0.005", "0.007"}),
        (1, 1.5, {"1.05", "1.2", "1.35"}),
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
