"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


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


def html(
    head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", notes: Sequence[str] = ()
) -> str:
    """A table for a notebook."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    said = f"<p>{escape(title)}</p>" if title else ""
    more = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"{said}<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>{more}"
