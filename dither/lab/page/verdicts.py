"""Verdicts and numbers of claims in readable form, and the files that hold them."""

import json
import math
import re
from pathlib import Path
from typing import Any

from dither.errors import DitherError

VERDICTS = {True: ("holds", "✓"), False: ("fails", "✗"), None: ("not judged", "–")}
FREE = ("cannot fail", "○")  # a claim that is not counted
THIN = "\u2009"  # space between thousands
MANY = 12  # values of an array that are shown
SPREADS = {"sd": "sd", "sem": "standard error"}


def readable(number: Any) -> str:
    """One of a claim's numbers in readable form: "0.832 ± 0.010 (sd of 5)"."""
    if isinstance(number, dict) and number.get("kind") == "interval":
        return finding(number)
    if isinstance(number, dict):
        kind, n = SPREADS.get(number.get("kind", ""), ""), number.get("n")
        note = f" ({kind}{f' of {n}' if n else ''})" if kind else ""
        return _with_spread(number["mean"], number["spread"]) + note
    if isinstance(number, list):
        more = f", … ({len(number)} in all)" if len(number) > MANY else ""
        return (", ".join(map(readable, number[:MANY])) or "none") + more
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, float) and 1000 <= abs(number) < 1e7:
        return f"{number:,.0f}".replace(",", THIN)
    if isinstance(number, float):
        return re.sub(r"e([+-])0?", r"e\1", f"{number:.3g}").replace("e+", "e")
    return "–" if number is None else str(number)


def finding(number: dict[str, Any]) -> str:
    """The result of a comparison: "0.013 [0.004, 0.022], n = 5, asked > 0.01: holds"."""
    mean, low, high = (readable(number[part]) for part in ("mean", "low", "high"))
    ends = "" if number["low"] == "nan" else f" [{low}, {high}]"
    word = VERDICTS[number["holds"]][0]
    return f"{mean}{ends}, n = {number['n']}, asked {number['asked']}: {word}"


def _with_spread(mean: Any, spread: Any) -> str:
    """The spread with two digits, the mean to the same decimal."""
    if not (isinstance(mean, float) and isinstance(spread, float) and spread > 0):
        return f"{readable(mean)} ± {readable(spread)}"
    decimals = 1 - math.floor(math.log10(spread))
    if not 0 <= decimals <= 6 or abs(mean) >= 1000:
        return f"{readable(mean)} ± {readable(spread)}"
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def judged(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The contents of figure.json and claims.json in a figure's folder."""
    try:
        about = json.loads((folder / "figure.json").read_text(encoding="utf-8"))
        claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DitherError(
            f"{folder} can't be read ({error}): delete it and run `dither reproduce` again"
        ) from error
    return about, claims
