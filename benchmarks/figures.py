"""The two figures of a record: costs as bars, and growth beside the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.growth import AXES
from benchmarks.record import rows_of
from benchmarks.targets import AGAINST, AT_MOST, Row, cost, same
from benchmarks.workloads import WORKLOADS

# Okabe and Ito's colours: told apart by the colour-blind
COLOURS = {
    "dither": "#0072B2",
    "naive": "#999999",
    "BackPACK": "#E69F00",
    "curvlinops": "#009E73",
    "ASDL": "#CC79A7",
    "PyHessian": "#D55E00",
    "hessian-eigenthings": "#56B4E9",
    "laplace-torch": "#F0E442",
    "opacus": "#000000",
}
PANELS = (
    ("exact R at all layer inputs", "R"),
    ("trace of the weights' Gauss–Newton matrix", "GN trace"),
    ("trace of the Hessian", "Hessian trace"),
    ("step with gaussian noise on all weights", "weights"),
)
STYLE: Any = {
    "svg.hashsalt": "dither",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """benchmarks.svg, and growth.svg where it was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with plt.rc_context(STYLE):
        drawn = [("benchmarks", bars(record))] if any(map(_drawable, rows_of(record))) else []
        if record.get("growth"):
            drawn.append(("growth", growth(record["growth"])))
        for name, figure in drawn:
            path = folder / f"{name}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
            made.append(path)
    return made


def bars(record: dict[str, Any]) -> Figure:
    """One panel a quantity; for each workload a bar by everyone who gave the same number, the
    cheapest of each.
    """
    panels = [(title, quantity, _best(rows_of(record), quantity)) for title, quantity in PANELS]
    panels = [panel for panel in panels if panel[2]]
    heights = [len(found) + 1.5 * len({w for w, _ in found}) for _, _, found in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(8, 0.17 * sum(heights) + 0.7 * len(panels)),
        squeeze=False,
        height_ratios=heights,
    )
    for ax, (title, quantity, found) in zip(axes[:, 0], panels, strict=True):
        _panel(ax, quantity, found)
        ax.set_title(title, loc="left", fontweight="bold", fontsize=9)
    axes[-1, 0].set_xlabel(
        "plain forward + backward passes on the same network (log; CPU, one thread; tick: target)"
    )
    figure.tight_layout()
    return figure


def _drawable(row: Row) -> bool:
    return row["quantity"] in {quantity for _, quantity in PANELS} and "cpu" in row and same(row)


def _best(rows: list[Row], quantity: str) -> dict[tuple[str, str], Row]:
    """{(workload, who): the cheapest row that gave the same number}, where there is a target."""
    judged = {w for q, w in AT_MOST if q == quantity}
    judged |= {a.workload for a in AGAINST if a.quantity == quantity}
    measured = {row["workload"] for row in rows if row["quantity"] == quantity}
    shown = judged & measured or measured
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["quantity"] != quantity or cost(row) is None or row["workload"] not in shown:
            continue
        if row["who"] == "dither" and row["environment"] != "dither":
            continue
        key = (row["workload"], row["who"])
        if key not in found or cost(row) < cost(found[key]):  # type: ignore[operator]
            found[key] = row
    return found


def _panel(ax: Axes, quantity: str, found: dict[tuple[str, str], Row]) -> None:
    y, ticks, names = 0.0, [], []
    for workload in (w for w in WORKLOADS if any(key[0] == w for key in found)):
        top = y
        for who in (w for w in COLOURS if (workload, w) in found):
            row = found[workload, who]
            s, most = row["cpu"], AT_MOST.get((quantity, workload), 0) if who == "dither" else 0
            ax.barh(y, s["median"], height=0.85, color=COLOURS[who])
            ax.plot([s["least"], s["most"]], [y, y], color="#444444", lw=0.8)
            if most:
                ax.plot([most, most], [y - 0.45, y + 0.45], color="white", lw=2.6)
                ax.plot([most, most], [y - 0.45, y + 0.45], color="black", lw=1.2)
            label = f"  {s['median']:.3g}  {who}" + (f": {row['how']}" if who != "dither" else "")
            ax.text(max(s["most"], most), y, label, va="center", fontsize=7)
            y += 1
        ticks.append((top + y - 1) / 2)
        names.append(WORKLOADS[workload].title)
        y += 1
    ax.axvline(1, color="#444444", lw=0.7, ls=":")
    ax.set(xscale="log", yticks=ticks, yticklabels=names, ylim=(y - 0.6, -0.8))
    ax.tick_params(axis="y", length=0)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0.5), high * 2.5)
    ax.xaxis.set_major_formatter("{x:g}")


def growth(rows: list[dict[str, Any]]) -> Figure:
    """Exact and sampled R along each axis, with the floor."""
    figure, axes = plt.subplots(1, len(AXES), figsize=(10, 2.8), sharey=True)
    for ax, axis in zip(axes, AXES, strict=True):
        along = [r for r in rows if r["axis"] == axis]
        n = [r["n"] for r in along]
        for quantity, label, colour, marker in (
            ("R", "exact R", COLOURS["dither"], "o"),
            ("R sampled", "sampled R", COLOURS["BackPACK"], "s"),
        ):
            middle = [r[quantity]["median"] for r in along]
            ax.fill_between(
                n,
                [r[quantity]["least"] for r in along],
                [r[quantity]["most"] for r in along],
                color=colour,
                alpha=0.25,
                lw=0,
            )
            ax.plot(n, middle, color=colour, marker=marker, ms=3.5, label=label)
        ax.plot(
            n, [r["floor"] for r in along], color="#444444", ls="--", lw=1, label="(C − 1)/3 + 1/3"
        )
        ax.set(xscale="log", yscale="log", xlabel=axis)
        ax.set_xticks(n, labels=[str(k) for k in n], fontsize=7)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("plain forward + backward passes")
    axes[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure
