"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def grid(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """The lines of a table, with two spaces between columns. right: all columns but the first one
    are set to the right, as numbers are.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust, *[str.rjust if right else str.ljust] * (len(widths) - 1)]

    def line(row: Sequence[str]) -> str:
        cells = zip(pads, row, widths, strict=True)
        return "  ".join(pad(cell, width) for pad, cell, width in cells).rstrip()

    return list(map(line, rows))
