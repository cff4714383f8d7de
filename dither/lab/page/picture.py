"""A figure's picture as a part of the page: an inline SVG, or a PNG if that is smaller.

A folder of results may come from elsewhere. So an SVG is put into the page only if it consists of
the shapes and words that a plot is made of; any other one is shown as an image, in which a browser
runs no script and loads nothing.
"""

import base64
import hashlib
import html
import os
import re
import struct
from functools import lru_cache
from pathlib import Path

from dither.lab.page.verdicts import unreadable

DPI = 150  # of the PNGs
PNG = b"\x89PNG\r\n\x1a\n"  # how one begins
LARGEST = 100_000_000  # bytes of a picture
HEAVY = 60_000  # bytes of SVG; above, the page shows the PNG if that is smaller


SHAPES = (
    "svg|g|defs|style|path|rect|circle|ellipse|line|polyline|polygon|use|text|tspan|clipPath|image|"
    "linearGradient|radialGradient|stop|pattern|mask|marker"
)
OWN = r"#[^\"<>]*|data:image/png;base64,[\w+/=\s]*"  # what a picture may refer to
TAG = re.compile(
    rf"<(?:/(?:{SHAPES})|(?:{SHAPES})(?:\s+(?:(?:xlink:)?href=\"(?:{OWN})\""
    r"|(?!on|style|(?:xlink:)?href)[a-zA-Z][\w:.-]*=\"[^\"<>]*\"))*\s*/?)>",
    re.IGNORECASE | re.ASCII,
)
CSS = re.compile(r"(?:\.s[0-9a-f]{8}\{[\w\s:;.,#%()'+*-]*\})*")  # what `lighter` writes


def of(folder: Path, name: str, title: str) -> tuple[str, float]:
    """HTML and width in points of the smaller of the figure's pictures; ("", 0) if the figure was
    not drawn. Raises DitherError if a picture can't be read.
    """
    svg, png = folder / "figure.svg", folder / "figure.png"
    pictures = []
    if os.path.lexists(svg):
        try:
            text = loaded(svg).decode()
            inline, width, harmless = _inlined(text, name, title)
            pictures.append((inline, width))
        except ValueError as error:
            raise unreadable(svg, error) from error
        if not harmless:
            source = f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
            pictures = [(f'<img src="{source}" alt="{html.escape(title)}">', pictures[0][1])]
    if os.path.lexists(png) and (not pictures or len(pictures[0][0]) > HEAVY):
        data = loaded(png)
        if data[:8] != PNG or len(data) < 24:
            raise unreadable(png, "it is no PNG")
        (width,) = struct.unpack(">I", data[16:20])
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        pictures.append((f'<img src="{source}" alt="{html.escape(title)}">', width * 72 / DPI))
    return min(pictures, key=lambda picture: len(picture[0]), default=("", 0.0))


@lru_cache(maxsize=128)
def _inlined(svg: str, name: str, title: str) -> tuple[str, float, bool]:
    """An SVG file as a part of a page, its width, and whether it is `plain`. The page is written
    after every figure, with all others as they were.
    """
    inline, width = _inline(svg, name, title)
    return inline, width, plain(inline)


def plain(svg: str) -> bool:
    """Whether an inlined SVG has nothing but shapes, words and styles: each "<" begins one of their
    tags, no tag has a handler of events or refers outside, and no style leaves its element.
    """
    tags = TAG.sub("", svg)
    styles = re.findall(r"<style>([^<]*)</style>", svg)
    styled = svg.count("<style") == len(styles) and all(map(CSS.fullmatch, styles))
    loads = re.search(r"url\((?!#)", "".join(styles), re.IGNORECASE)
    return "<" not in tags and ">" not in tags and styled and not loads


def loaded(path: Path) -> bytes:
    """The bytes of a picture."""
    try:
        if path.stat().st_size > LARGEST:
            raise unreadable(path, "it is too large")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error.strerror) from error


def _inline(svg: str, name: str, title: str) -> tuple[str, float]:
    """An SVG file as a part of a page: with unique ids, without prologue, metadata and size."""
    svg = svg[svg.index("<svg") :]
    theirs = r"<metadata>.*?</metadata>|<style .*?</style>"  # matplotlib's; `lighter` wrote <style>
    svg = re.sub(theirs, "", svg, flags=re.S)
    svg = lighter(svg)
    prefix = "p" + hashlib.sha256(name.encode()).hexdigest()[:6]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    width = float(match[1]) if (match := re.search(r'\bwidth="(\d+\.?\d*)pt"', svg)) else 460.0
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = f'role="img" aria-label="{html.escape(title)}" stroke-linejoin="round"'
    return f"{head} {label}>{rest}", width


def lighter(svg: str) -> str:
    """The same picture in fewer bytes: coordinates with one decimal of a point, one class for each
    style, no id that nothing refers to, no turn by 0 and no group without an attribute.
    """
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'\stransform="rotate\(-?0(?:\.0+)?(?: [\d.-]+)*\)"', "", svg)
    svg = re.sub(r'\s(d|x|y|points)="([^"]*)"', _rounded, svg)
    used = set(re.findall(r"""(?:href="|url\()#([^")]+)""", svg))
    svg = re.sub(r'\sid="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    styles = {style: _name(style) for style in re.findall(r'\sstyle="([^"]+)"', svg)}
    svg = re.sub(r'\sstyle="([^"]+)"', lambda m: f' class="{styles[m[1]]}"', svg)
    rules = "".join(f".{name}{{{html.unescape(style)}}}" for style, name in styles.items())
    head, rest = svg.split(">", 1)
    return _flat(re.sub(r">\s+<", "><", f"{head}><style>{rules}</style>{rest}"))


def _flat(svg: str) -> str:
    """Without groups that have no attribute; unchanged if its groups do not match."""
    kept, opened = [], []
    for piece in re.split(r"(<g>|<g\s[^>]*[^/]>|</g>)", svg.replace("<g/>", "")):
        if piece == "</g>":
            if not opened:
                return svg
            keep = opened.pop()
        elif keep := piece != "<g>":
            if piece.startswith("<g") and piece[2:3].isspace() and not piece.endswith("/>"):
                opened.append(True)
        else:
            opened.append(False)
        if keep:
            kept.append(piece)
    return svg if opened else "".join(kept)


def _name(style: str) -> str:
    """A class name for a style, equal in all pictures of a page."""
    return "s" + hashlib.sha256(style.encode()).hexdigest()[:8]


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates with one decimal of a point, and lines without repeated letters L."""

    def short(number: re.Match[str]) -> str:
        return f"{float(number[0]):.1f}".removesuffix(".0")

    words = " ".join(re.sub(r"-?\d+\.\d{2,}", short, attribute[2]).split())
    line = r"(?<=L )(-?[\d.]+ -?[\d.]+)((?: L -?[\d.]+ -?[\d.]+)+)"
    words = re.sub(line, lambda m: m[1] + m[2].replace(" L ", " "), words)
    return f' {attribute[1]}="{words}"'
