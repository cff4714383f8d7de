"""Verdicts and numbers of claims in readable form, and the files that hold them."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab.figure import SCALES

VERDICTS = {True: ("holds", "✓"), False: ("fails", "✗"), None: ("not judged", "–")}
FREE = ("cannot fail", "○")  # a claim that is not counted
THIN = "\u2009"  # space between thousands
MANY = 12  # values of an array that are shown
LARGEST = 100_000_000  # bytes of a file
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
    if not (isinstance(mean, float) and isinstance(spread, float) and 0 < spread < math.inf):
        return f"{readable(mean)} ± {readable(spread)}"
    decimals = 1 - math.floor(math.log10(spread))
    if not 0 <= decimals <= 6 or abs(mean) >= 1000:
        return f"{readable(mean)} ± {readable(spread)}"
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def judged(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The contents of figure.json and claims.json in a figure's folder. Raises DitherError if they
    can't be read, or if a field is of another kind than `conclude` writes.
    """
    about, entries = (_json(folder / file) for file in ("figure.json", "claims.json"))
    for wrong in (*_wrong(about, FIGURE, "the figure"), *_wrong_claims(entries)):
        raise unreadable(folder, wrong)
    if about.get("name") != (name := "/".join(folder.parts[-2:])):
        raise unreadable(folder, f"it is about {about.get('name')}, not {name}")
    return about, entries


def unreadable(path: Path, why: object) -> DitherError:
    """The error of a file, or folder, of a figure."""
    return DitherError(f"{path} can't be read ({why}): delete it and run `dither reproduce` again")


def _json(path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"it has {size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise unreadable(path, why) from error


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15 and not isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_word, value))


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _reasons(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_word, value.values()))


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _shown(value: Any) -> bool:
    """Whether it is one of the forms that `judge.number` gives."""
    if isinstance(value, list):
        return all(map(_scalar, value))
    if not isinstance(value, dict):
        return _scalar(value)
    interval = value.get("kind") == "interval"
    parts = ("mean", "low", "high", "n", "asked", "holds") if interval else ("mean", "spread")
    plain = all(map(_scalar, value.values())) and all(part in value for part in parts)
    return plain and (not interval or _verdict(value["holds"]))


def _verdict(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _wrong(held: Any, kinds: Mapping[str, Any], what: str) -> Iterator[str]:
    """What is wrong with a mapping of fields."""
    if not isinstance(held, dict):
        yield f"{what} is a {type(held).__name__} instead of fields"
        return
    for field, right in kinds.items():
        needed = not field.endswith("?")
        if (name := field.removesuffix("?")) not in held:
            if needed:
                yield f"{what} lacks {name!r}"
        elif not right(held[name]):
            yield f"{name!r} of {what} has another form"


def _wrong_claims(entries: Any) -> Iterator[str]:
    if not isinstance(entries, list):
        yield f"the claims are a {type(entries).__name__} instead of a list"
        return
    for entry in entries:
        yield from _wrong(entry, CLAIM, "a claim")


FIGURE = {  # field → what it must be; "?": it may be absent
    "name": _word, "title": _word, "caption?": _word, "scale": lambda scale: scale in SCALES,
    "seeds": _seeds, "left out": _seeds, "runs?": _number, "problem?": _word, "missing?": _reasons,
    "failures?": _reasons, "lost?": _reasons, "more seeds?": _number, "earlier?": _words,
    "departures?": _words, "command?": _word,
    "seconds?": _number, "machines?": _words, "versions?": _words, "commits?": _words,
    "no picture?": _word, "finished?": _word,
}  # fmt: skip
CLAIM = {
    "id": _word, "claim": _word, "holds": _verdict, "counts?": _verdict,
    "numbers": lambda held: isinstance(held, dict) and all(map(_shown, held.values())),
    "seeds?": _number, "own seeds?": _word, "scale?": lambda scale: scale in SCALES,
}  # fmt: skip
