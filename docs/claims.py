"""The papers' own claims with their verdicts, one row each, as a page: `make docs` writes it from
records/ and results/.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from dither.lab import catalogue, rule
from dither.lab.page import originals
from dither.lab.page.verdicts import VERDICTS

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "claims.md", ROOT / "README.md"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
PAPERS = {
    "camuto2020": "noise on activations",
    "levi2022": "trained noise nodes",
    "orvieto2022": "noise on weights",
}
TALLY = re.compile(r"^Of the papers' .*(?:\n\n?- .*)+", re.M)
LONGEST = 260  # letters of a cell's evidence
HEAD = """# The papers' claims

Each claim of the three papers, in the paper's order: its verdict at the best scale there is, what
it rests on, and what would settle it or limits it. The best scale is the largest that judges the
claim; `paper` is the paper's own and `decisive` the smallest that can tell, both from
[recorded runs](records.md); `quick` is that of `make reproduce`, all of which is in
[verdicts.md](verdicts.md). Written by `make docs`.

{tally}

"""
RULE = """
## How a claim is judged

One rule ([rule.py](../dither/lab/rule.py)). Runs are compared seed by seed: they share the initial
weights and the order of the data. Each comparison has a floor, the smallest difference that
matters, which was written down before the result. The 95 % interval of the mean difference is
Student's t.

- ✓ **holds**: the interval lies inside the range that the claim names, such as above the floor.
- ✗ **fails**: the interval lies outside that range.
- – **not judged**: the interval contains the edge of the range, or n < 5, or a network has not
  learnt, or the scale cannot judge the claim. What is missing is said.

A claim of several comparisons holds if all hold, and fails if one fails by Holm's correction. "In
every run" is a share of runs, judged by its exact (Clopper–Pearson) interval against .9: 36 runs
out of 36 are needed. A claim that cannot fail says so (○) and is not counted.

If the mean lies on the edge, at most 5 % of claims are decided, however many comparisons they have.
A claim that was not settled may be asked anew, of other seeds alone ("anew"). It then has two
chances: at most 10 % are decided.
How often a single comparison holds, when the mean lies this many standard deviations (of the
difference between seeds) inside the range:

{power}

With n = 3 the rule judges nothing; the first row is what the interval alone would give.
"""


def page(*roots: Path) -> str:
    """From folders of results; entries of claims that say something else today are left out."""
    known = todays(originals.known(*roots))
    rows = {paper: originals.rows(paper, known) for paper in PAPERS}
    free = sum(not row.original.counts for paper in PAPERS for row in rows[paper])
    more = f"{free} more cannot fail and {'is' if free == 1 else 'are'} not counted."
    said = f"{tally(rows)}\n\n{more}"
    parts = (f"\n## {catalogue.paper(paper)}\n\n{table(rows[paper])}" for paper in PAPERS)
    whole = HEAD.format(tally=said) + "".join(parts) + ours(known) + RULE.format(power=power())
    return whole.replace(str(Path.home()), "~")


def tally(rows: dict[str, list[originals.Row]]) -> str:
    """How many claims hold, fail, are not judged: in all, and a line a paper. The README's too."""
    lines, whole = [], Counter()
    for paper, there in rows.items():
        count = Counter(row.holds for row in there if row.original.counts)
        whole.update(count)
        name = catalogue.paper(paper).partition(",")[0]
        lines.append(f"- **{name}**, {PAPERS[paper]}: {verdicts(count)}.")
    head = f"Of the papers' {whole.total()} claims that can fail, {verdicts(whole)}:"
    return "\n".join([head, "", *lines])


def verdicts(count: Counter) -> str:
    """Like "5 hold, 0 fail, 9 are not judged yet"."""
    hold, fail, unclear = (count[verdict] for verdict in VERDICTS)
    return f"{hold} hold, {fail} fail, {unclear} are not judged yet"


def renewed(readme: str, whole: str) -> str:
    """The README with the page's tally between its two marks."""
    (said,) = TALLY.findall(whole)
    marks = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.S)
    return marks.sub(lambda _: f"\n{said}\n\n", readme, count=1)


def todays(known: originals.Known) -> originals.Known:
    """Without entries of claims that now say something else."""
    names = {name.partition(": ")[0] for name in known} & set(catalogue.names())
    said = {f"{n}: {c.id}": c.text for n in names for c in catalogue.find(n).claims}
    found = {n: [e for e in entries if e["claim"] == said.get(n)] for n, entries in known.items()}
    return {name: entries for name, entries in found.items() if entries}


def table(rows: list[originals.Row]) -> str:
    """The rows of one paper."""
    head = (
        "| claim | the paper says | verdict | evidence | n | scale | what settles or limits it |\n"
    )
    return head + "|---|---|---|---|---:|---|---|\n" + "".join(map(line, rows))


def line(row: originals.Row) -> str:
    """One row."""
    o, name = row.original, row.original.figure
    link = f"[{o.id}](../dither/papers/{name}.py)"
    told = " · ".join(filter(None, (row.parts, short(row.evidence)))) or "not run yet"
    word, mark = row.said
    found = (told, row.seeds, row.scale) if o.counts or row.holds is not None else "–––"
    cells = (link, f"{o.text} ({o.place})", f"{mark} {word}", *found, row.missing or row.limits)
    return cells_line(cells)


def ours(known: originals.Known) -> str:
    """Claims beside the papers': variants of them, and those of figures of our own."""
    head = (
        "\n## Ours\n\nVariants of the claims above (other data, losses, readings), and claims that "
    )
    head += "no paper makes.\n\n| claim | it says | verdict | n | scale |\n|---|---|---|---:|---|\n"
    found = {}
    for paper in (*PAPERS, "beyond"):
        for row in originals.rows(paper, known):
            found |= row.variants
        found |= originals.ours(paper, known)
    lines = []
    for name in sorted(found):
        entry = found[name]
        link = f"[{entry['figure'].partition('/')[2]}: {entry['id']}]"
        link += f"(../dither/papers/{entry['figure']}.py)"
        cells = (link, entry["claim"], verdict(entry["holds"]), entry["seeds"], entry["scale"])
        lines.append(cells_line(cells))
    return head + "".join(lines)


def power() -> str:
    """The rule's power, as a table."""
    head = "| seeds | .5 | 1 | 2 |\n|---:|---:|---:|---:|\n"
    rows = (
        (n, *(f"{100 * rule.power(effect, n):.0f} %" for effect in (0.5, 1, 2))) for n in (3, 5, 10)
    )
    return head + "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def verdict(holds: bool | None) -> str:
    """Like "✓ holds"."""
    word, mark = VERDICTS[holds]
    return f"{mark} {word}"


def short(evidence: tuple[str, ...] | list[str]) -> str:
    """The first pieces of evidence, each whole, in about `LONGEST` letters, and how many more."""
    kept = list(evidence[:1])
    for piece in evidence[1:]:
        if len(" · ".join((*kept, piece))) > LONGEST:
            break
        kept.append(piece)
    more = len(evidence) - len(kept)
    return " · ".join(kept + [f"and {more} more"] * bool(more))


def cells_line(cells: tuple) -> str:
    """A row of Markdown."""
    cleaned = (" ".join(str(cell).replace("|", "\\|").split()) for cell in cells)
    return "| " + " | ".join(cleaned) + " |\n"


if __name__ == "__main__":
    results = map(Path, sys.argv[1:] or [ROOT / "results"])
    records = ROOT / "records", ROOT / "records" / "decisive"
    PAGE.write_text(whole := page(*records, *results), encoding="utf-8")
    README.write_text(renewed(README.read_text(encoding="utf-8"), whole), encoding="utf-8")
