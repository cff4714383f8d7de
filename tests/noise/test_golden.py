"""One draw of each law, pinned: a change of keys, of generators or of the order in which a law asks
for numbers gives all users other runs under the same seed, and no law of the draws would notice it.
"""

import pytest
import torch

from dither.noise import dropout, gaussian, two_gaussian, two_point, uniform
from dither.noise.draw import Source, key
from dither.noise.fill import LONG

LAWS = {
    "gaussian": gaussian,
    "uniform": uniform,
    "two_point": two_point,
    "two_gaussian": two_gaussian,
    "dropout": dropout(0.3),
}
# float64, drawn by torch
SHORT = {
    "gaussian": [
        0.7272653,
        1.227351,
        0.146578,
        0.158886,
        -0.3358286,
        0.4090674,
        0.7106782,
        -0.2297601,
    ],
    "uniform": [
        -0.6702711,
        0.2771155,
        -0.7371813,
        -0.9538118,
        -0.2811962,
        -0.7386148,
        0.9004674,
        -0.5131908,
    ],
    "two_point": [-1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0],
    "two_gaussian": [
        -1.034205,
        -1.040592,
        -0.9066146,
        -0.9863534,
        1.166912,
        -0.8206994,
        1.002019,
        -0.951318,
    ],
    "dropout": [-1.0, 0.4285714, -1.0, -1.0, 0.4285714, -1.0, 0.4285714, -1.0],
}
# float32 and long, filled from the bits of SFC64
LONG_ONES = {
    "gaussian": [
        -0.3730849,
        -0.5990824,
        -0.2930301,
        -0.6102567,
        0.128385,
        0.2092735,
        1.876383,
        0.09046934,
    ],
    "uniform": [
        -0.7394208,
        -0.6454341,
        -0.4488187,
        -0.4924144,
        0.384183,
        -0.1234812,
        0.8384912,
        -0.1067038,
    ],
    "two_point": [-1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0],
    "two_gaussian": [
        -0.9636019,
        -0.9648787,
        -0.9801748,
        -0.9601272,
        1.224292,
        -1.029833,
        1.160053,
        -1.071697,
    ],
    "dropout": [-1.0, -1.0, -1.0, -1.0, 0.4285715, 0.4285715, 0.4285715, 0.4285715],
}
WORDS = (7, "fc:in", 3)


def drawn(law, n: int, dtype: torch.dtype, *, reflect: bool = False) -> torch.Tensor:
    """The first numbers of a draw of n."""
    return Source([key(*WORDS)], reflect=reflect)(law, torch.empty(n, dtype=dtype))[:8].double()


def test_the_key_of_some_words_is_what_it_was():
    assert key(*WORDS) == 7856328520954959606
    assert key("fc:in", 7, 3) != key(*WORDS)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_draws_what_it_drew(name):
    for wanted, n, dtype in ((SHORT, 8, torch.float64), (LONG_ONES, LONG, torch.float32)):
        found = drawn(LAWS[name], n, dtype)
        right = torch.tensor(wanted[name], dtype=torch.float64)
        torch.testing.assert_close(found, right, rtol=0, atol=1e-6)
