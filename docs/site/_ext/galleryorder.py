"""The order of the gallery: that of a new user's questions."""

from typing import Any

ORDER = [
    "plot_choose_sigma.py",
    "plot_keep_balance.py",
    "plot_r_and_the_truth.py",
    "plot_compare.py",
    "plot_adapter.py",
    "plot_neftune.py",
    "plot_droppath.py",
    "plot_hardware.py",
    "plot_node.py",
    "plot_instead_of_sam.py",
    "plot_exact_trace.py",
    "plot_explode.py",
    "plot_reliability.py",
    "plot_graph.py",
    "plot_write_a_noise.py",
]


class InOrder:
    """A sort key: the place in `ORDER`. A script that is not listed is an error."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> Any:
        return ORDER.index(filename)

    def __repr__(self) -> str:
        return "<InOrder>"
