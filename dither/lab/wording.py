"""Titles, captions and durations in words. No torch here."""

import re
from collections.abc import Iterable

SENTENCE_END = r"(?<!\bFig)(?<!\bEq)(?<!\beq)(?<!\bApp)(?<!\bcf)(?<!\bal)\.\s+|\.$|\s·\s"


def title_and_caption(doc: str) -> tuple[str, str]:
    """The first sentence of a module's docstring, and its other paragraphs, each on one line.

    Three spaces within a line separate the source; indented paragraphs (formulae) stay as they are.
    """
    first, *others = re.split(r"\n[ \t]*\n", doc.strip())
    title, *rest = re.split(SENTENCE_END, _on_one_line(first), maxsplit=1)
    rest = [text.removeprefix("· ") for text in rest]
    paragraphs = [p.rstrip() if p.startswith("  ") else _on_one_line(p) for p in [*rest, *others]]
    return title, "\n\n".join(p for p in paragraphs if p.strip())


def _on_one_line(paragraph: str) -> str:
    return " ".join(re.sub(r"(?<=\S) {3,}(?=\S)", " · ", paragraph).split())


def whole(numbers: Iterable[int]) -> str:
    """Whole numbers in words: "5–14"; "3, 7, 9"."""
    numbers = sorted(numbers)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def duration(seconds: float) -> str:
    """Seconds in words: "0.4 s", "12 s", "3 min", "2.5 h", "14 days". Two digits; a unit starts at
    two of it.
    """
    units = ((86_400, "days"), (3600, "h"), (60, "min"))
    size, unit = next((u for u in units if seconds >= 2 * u[0]), (1, "s"))
    number = seconds / size
    return (
        f"{number:.1f}".removesuffix(".0") + f" {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    )
