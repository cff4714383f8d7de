"""Figure 4: layer-wise noise regularises deep networks, noise on all weights only narrow ones.

Orvieto et al. 2022, Fig. 4, §5. Five hidden ReLU layers of 1000 (MLP3, left) or 5000 units (MLP4,
right), full-batch gradient descent on 1024 Fashion-MNIST images: test accuracy, and the trace of
the training loss' Hessian.
"""

from dither.lab import Table
from dither.papers import style
from dither.papers.ends import ACCURACY
from dither.papers.orvieto2022 import mlps
from dither.papers.orvieto2022.schemes import SCHEMES, TRACE, panel

WIDTHS = {"MLP3 at .05": "narrow (MLP3)", "MLP4": "wide (MLP4)"}


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.2)
    for column, (name, title) in zip(axes.T, WIDTHS.items(), strict=True):
        for ax, quantity in zip(column, (ACCURACY, TRACE), strict=True):
            panel(ax, t, mlps.there(t, name), quantity)
        column[0].set_title(f"{title}\n{column[0].get_title()}")
    handles = axes[0, 0].get_lines()[: len(SCHEMES)]
    style.legend(picture, handles=handles, loc="outside upper center", ncols=3)
    return picture


figure = mlps.figure(
    "MLP3",
    "MLP3 at .05",
    "MLP4",
    draw=plot,
    more=[
        "the text says σ = .05 for both, which is drawn; App. F.1 .1 for the narrow one, which "
        "is judged too"
    ],
)
