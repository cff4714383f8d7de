"""What came of every claim at the quick scale, as a page: `make docs` writes it where results/ has
every figure at that scale.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.page import originals, report

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "verdicts.md"
SHOWN = 4  # numbers a claim
HEAD = """# Verdicts

What `make reproduce` gave at the quick scale: each claim, its verdict (✓ holds, ✗ fails, – not
judged), and the first of its numbers, mean ± standard deviation over seeds. The quick scale is
small: where a recorded run at a larger scale says otherwise, the row says so, and
[records.md](records.md) has its numbers; [claims.md](claims.md) has the papers' own claims at the
best scale there is, and the rule by which all are judged. `dither show FIGURE` prints every number
and what differs from the paper. Written by `make docs`.

{count}
"""


RECORDS = ROOT / "records", ROOT / "records" / "decisive"


def page(results: Path, *records: Path) -> str:
    """Raises DitherError where a figure is missing, or was run at another scale."""
    recorded = originals.known(*(records or RECORDS))
    parts, verdicts = [], Counter()
    for name in catalogue.names():
        folder = results / "figures" / name
        if not (folder / "figure.json").is_file():
            raise DitherError(f"{results} lacks {name}: `dither reproduce {name}`, then again")
        about, entries = report.judged(folder)
        if about["scale"] != "quick":
            raise DitherError(f"{results} has {name} at the scale {about['scale']}, not quick")
        today = [(claim.id, claim.text) for claim in catalogue.find(name).claims_at("quick")]
        if [(entry["id"], entry["claim"]) for entry in entries] != today:
            raise DitherError(f"{results} has {name} judged by other claims: reproduce it again")
        parts.append(section(name, about, entries, recorded))
        verdicts.update(entry["holds"] for entry in entries)
    hold, fail, unclear = (verdicts[verdict] for verdict in (True, False, None))
    count = f"{verdicts.total()} claims: {hold} hold, {fail} fail, {unclear} are not judged."
    whole = HEAD.format(count=count) + "".join(parts)
    return whole.replace(str(Path.home()), "~")  # where absent data would go


def section(
    name: str, about: dict[str, Any], entries: list[dict[str, Any]], recorded: originals.Known
) -> str:
    """A figure's heading and its table."""
    head = f"\n## {name}\n\n[{catalogue.title(name)}](../dither/papers/{name}.py)"
    if about.get("problem"):
        return f"{head}: not run: {about['problem']}.\n"
    seeds = len(about["seeds"]) - len(about["left out"])
    head += f", {seeds} seed{'s' * (seeds != 1)}.\n\n| | claim | numbers |\n|---|---|---|\n"
    rows = (row(entry, recorded.get(f"{name}: {entry['id']}", [])) for entry in entries)
    return head + "".join(f"{line}\n" for line in rows)


def row(entry: dict[str, Any], recorded: list[dict[str, Any]]) -> str:
    """A claim's mark, its sentence, its first numbers, and the verdict of a record that differs."""
    mark = report.VERDICTS[entry["holds"]][1]
    for record in recorded:
        if record["holds"] is not entry["holds"]:
            word = report.VERDICTS[record["holds"]][0]
            mark += f" ({record['scale']} scale: [{word}](records.md))"
    numbers = [
        report.readable(value) if key == "why" else f"{key}: {report.readable(value)}"
        for key, value in entry["numbers"].items()
    ]
    more = [f"and {len(numbers) - SHOWN} more"] if len(numbers) > SHOWN else []
    told = " · ".join([*numbers[:SHOWN], *more])
    cells = (mark, f"**{entry['id']}** {entry['claim']}", told)
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


if __name__ == "__main__":
    try:
        PAGE.write_text(page(ROOT / "results"), encoding="utf-8")
    except DitherError as error:
        print(f"{PAGE.name} is not written: {error}")
