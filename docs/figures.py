"""The table of figures in docs/figures.md, and the README's picture where the runs it is drawn from
are in results/: `make docs` writes both.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.page import judge
from dither.lab.runs.store import Store
from dither.lab.wording import duration
from dither.papers.levi2022 import fig3

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "figures.md", ROOT / "docs" / "phases.svg"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEAD = "| figure | what it shows | claims | quick scale |\n|---|---|---:|---:|"


def table() -> str:
    """One row a figure, in reading order."""
    return "\n".join([HEAD, *map(row, catalogue.names())])


def row(name: str) -> str:
    """Its name, its title, how many claims it has and what it costs on one core."""
    figure = catalogue.find(name)
    cost = duration(60 * figure.cost["quick"]) if "quick" in figure.cost else "?"
    link = f"[{name}](../dither/papers/{name}.py)"
    cells = (link, catalogue.title(name), str(len(figure.claims)), cost)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def renewed(page: str) -> str:
    """The page with the table between its two marks made anew."""
    found = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.S)
    return found.sub(lambda _: f"\n{table()}\n\n", page, count=1)


def phases(results: Path) -> bytes:
    """The half of levi2022/fig3 that trains on logits, at quick scale. Raises where a run is
    missing.
    """
    name = "levi2022/fig3"
    figure = replace(fig3.figure, plot=partial(fig3.plot, losses=("logits",)))
    runs = figure.runs(**figure.quick)
    study = judge.Study(name, "quick", tuple(range(figure.seeds["quick"])), "", figure, runs)
    table = judge.tabulate(study, Store(results))
    if len(table.seeds) < len(study.seeds):
        raise DitherError(f"{results} lacks runs of {name}: `dither reproduce {name}`, then again")
    return judge.picture_files(figure, table)["figure.svg"]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    try:
        PICTURE.write_bytes(phases(ROOT / "results"))
    except DitherError as error:
        print(f"{PICTURE.name} stays as it is: {error}")
