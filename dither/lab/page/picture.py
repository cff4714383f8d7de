"""A figure's picture as a part of the page: an inline SVG, or a PNG if that is smaller."""

import base64
import hashlib
import html
import re
import struct
from pathlib import Path

DPI = 150  # of the PNGs
HEAVY = 60_000  # bytes of SVG; above, the page shows the PNG if that is smaller


def of(folder: Path, name: str, title: str) -> tuple[str, float]:
    """HTML and width in points of the smaller of the figure's pictures; ("", 0) if the figure was
    not drawn.
    """
    svg, png = folder / "figure.svg", folder / "figure.png"
    pictures = []
    if svg.is_file():
        pictures.append(_inline(svg.read_text(encoding="utf-8"), name, title))
    if png.is_file() and (not pictures or len(pictures[0][0]) > HEAVY):
        data = png.read_bytes()
        (width,) = struct.unpack(">I", data[16:20])
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        pictures.append((f'<img src="{source}" alt="{html.escape(title)}">', width * 72 / DPI))
    return min(pictures, key=lambda picture: len(picture[0]), default=("", 0.0))


def _inline(svg: str, name: str, title: str) -> tuple[str, float]:
    """An SVG file as a part of a page: with unique ids, without prologue, metadata and size."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = lighter(svg)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    width = float(match[1]) if (match := re.search(r'\bwidth="([\d.]+)pt"', svg)) else 460.0
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = f'role="img" aria-label="{html.escape(title)}" stroke-linejoin="round"'
    return f"{head} {label}>{rest}", width


def lighter(svg: str) -> str:
    """The same picture in fewer bytes: coordinates with one decimal of a point, one class for each
    style, and no id that nothing refers to.
    """
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'\s(d|x|y|points)="([^"]*)"', _rounded, svg)
    used = set(re.findall(r"""(?:href="|url\()#([^")]+)""", svg))
    svg = re.sub(r'\sid="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    styles = {style: _name(style) for style in re.findall(r'\sstyle="([^"]+)"', svg)}
    svg = re.sub(r'\sstyle="([^"]+)"', lambda m: f' class="{styles[m[1]]}"', svg)
    rules = "".join(f".{name}{{{html.unescape(style)}}}" for style, name in styles.items())
    head, rest = svg.split(">", 1)
    return re.sub(r">\s+<", "><", f"{head}><style>{rules}</style>{rest}")


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
