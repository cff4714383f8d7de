"""Values of the command line's options."""

from collections.abc import Sequence

from dither.errors import DitherError


def seeds(text: str | None) -> int | range | None:
    """3 → 3; "2:5" → range(2, 5)."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (first.isdecimal() and (last.isdecimal() or not colon)):
        raise DitherError(f"--seeds {text}: give a number (3) or a range (0:3)")
    if colon and int(last) <= int(first):
        raise DitherError(f"--seeds {text} is empty: give a number (3) or a range (0:3)")
    return range(int(first), int(last)) if colon else int(first)


def resources(pairs: Sequence[str]) -> dict[str, float]:
    """["GPU=1"] → {"GPU": 1.0}."""
    found = {}
    for pair in pairs:
        name, _, much = pair.partition("=")
        try:
            found[name] = float(much)
        except ValueError:
            found[name] = 0.0
        if not (name and 0 < found[name] < float("inf")):
            raise DitherError(f"--resources {pair}: give a name and a number above 0, as GPU=1")
    return found
