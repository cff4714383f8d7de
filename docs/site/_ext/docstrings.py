"""The docstrings of dither are plain text. This turns them into what Sphinx reads: a column of
"name      text" becomes a list of fields, an indented formula becomes a literal block, and no
other character means anything.
"""

import re
from collections.abc import Callable
from typing import Any

COLUMN = re.compile(r"^(\w+(?:, \w+)*(?:\(\))?) {2,}(?=\S)(.*)$")
SPECIAL = re.compile(r"([\\*|])|(?<=\w)(_)(?!\w)")
MARK = re.compile(r"(`[^`\n]+(?:\n[^`\n]+)?`)")


def plain(text: str) -> str:
    """Text as reStructuredText; `code` stays code."""
    parts = MARK.split(text)
    return "".join(
        "``" + " ".join(part.strip("`").split()) + "``"
        if number % 2
        else SPECIAL.sub(r"\\\g<0>", part)
        for number, part in enumerate(parts)
    )


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Blocks of lines between empty ones."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def columns(block: list[str]) -> list[tuple[str, str]] | None:
    """[(name, text)] of a block whose first line is "name      text"; None for other blocks."""
    rows: list[tuple[str, str]] = []
    first = COLUMN.match(block[0])
    tight = re.compile(rf"^(?=.{{{first.start(2)}}}\S)(\w+) (.*)$") if first else COLUMN
    for line in block:
        found = COLUMN.match(line) or tight.match(line)
        if found:
            rows.append((found.group(1), found.group(2)))
        elif rows and line.startswith("  "):
            name, text = rows[-1]
            rows[-1] = name, f"{text} {line.strip()}"
        else:
            return None
    return rows


def fields(rows: list[tuple[str, str]]) -> list[str]:
    """A list of names with their texts."""
    return [
        line
        for name, text in rows
        for line in (f"**{name}**", f"    {plain(' '.join(text.split()))}", "")
    ]


def converted(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText."""
    out: list[str] = []
    for block in paragraphs(lines):
        rows = columns(block)
        if block[0].lstrip().startswith(">>>"):
            out += [line.strip() and line for line in block]
        elif rows:
            out += [".. rst-class:: columns", "", *fields(rows)]
        elif all(line.startswith("    ") for line in block):
            out += ["::", "", *block]
        elif any(line.startswith("    ") for line in block[1:]) and not block[0].startswith(" "):
            cut = next(i for i, line in enumerate(block) if line.startswith("    "))
            out += [*map(plain, block[:cut]), "", "::", "", *block[cut:]]
        else:
            out += [plain(line.strip()) for line in block]
        out.append("")
    return out


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The event `autodoc-process-docstring`. Docstrings from elsewhere stay as they are."""
    if name.startswith("dither"):
        lines[:] = converted(lines)


def signature(app: Any, what: str, name: str, *_: Any) -> tuple[str, str] | None:
    """The event `autodoc-process-signature`. Users do not make an Injection: `inject` does."""
    return ("", "") if name == "dither.Injection" else None


def setup(app: Any) -> dict[str, Any]:
    """Connect the event."""
    connect: Callable = app.connect
    connect("autodoc-process-docstring", process)
    connect("autodoc-process-signature", signature)
    return {"version": "1", "parallel_read_safe": True}
