"""A comparison as HTML: its tables, and one self-contained page with the picture."""

import io
import re
from datetime import date
from pathlib import Path

import jinja2

from dither.errors import DitherError
from dither.lab.compare.picture import draw
from dither.lab.compare.values import Values
from dither.lab.page.picture import lighter
from dither.lab.runs.provenance import environment, versions_line
from dither.lab.runs.store import write as put

TEMPLATES = Path(__file__).parent / "templates"


def table(found: Values) -> str:
    """The tables as a fragment of HTML, for a notebook."""
    return _template("tables.html.j2").render(found=found)


def write(found: Values, folder: Path) -> Path:
    """Write index.html, picture.svg, values.csv and values.parquet into a folder."""
    try:
        svg = _picture(found)
    except DitherError:  # one method alone has no differences
        svg = ""
    written = f"Written on {date.today().isoformat()} by {versions_line(environment(0.0))}."
    page = _template("page.html.j2").render(
        found=found, svg=svg, tables=table(found), written=written
    )
    put(folder / "index.html", page)
    if svg:
        put(folder / "picture.svg", svg)
    frame = found.to_frame()
    put(folder / "values.csv", frame.write_csv())
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    put(folder / "values.parquet", buffer.getvalue())
    return folder / "index.html"


def _picture(found: Values) -> str:
    buffer = io.StringIO()
    draw(found).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return lighter(re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S))


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    around = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return around.get_template(name)
