"""A picture in the page: lighter, and to the eye the same."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hostile import SVGS, Scripts

from dither.errors import DitherError
from dither.lab.page import judge, picture

mpl = pytest.importorskip("matplotlib.figure")
NUMBER = r"-?\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def svg():
    drawn = mpl.Figure(figsize=(3, 2))
    ax = drawn.subplots()
    x = np.linspace(0, 1, 200)
    ax.plot(x, np.sin(9 * x) * 0.0123456, label="0.123456 kept")
    ax.fill_between(x, x, x**2, alpha=0.2)
    ax.legend()
    buffer = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mpl.mpl.rcParams, "svg.fonttype", "none")
        drawn.savefig(buffer, format="svg")
    return buffer.getvalue()


def lines(text: str) -> list[list[float]]:
    return [list(map(float, re.findall(NUMBER, d))) for d in re.findall(r'\sd="([^"]*)"', text)]


def test_coordinates_move_by_less_than_a_tenth_of_a_point(svg, tmp_path):
    (tmp_path / "figure.svg").write_text(svg, encoding="utf-8")
    found, width = picture.of(tmp_path, "p/fig1", "A title")
    assert width == pytest.approx(216)
    assert len(found) < 0.7 * len(svg)
    before, after = lines(re.sub(r"<!--.*?-->", "", svg)), lines(found)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=0.0501)
    assert "0.123456 kept" in found
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert words == re.findall(r"<text[^>]*>([^<]*)</text>", found)


def test_every_reference_is_to_an_id_and_every_class_has_its_style(svg, tmp_path):
    (tmp_path / "figure.svg").write_text(svg, encoding="utf-8")
    found, _ = picture.of(tmp_path, "p/fig1", "A title")
    ids = re.findall(r'\sid="([^"]+)"', found)
    wanted = set(re.findall(r"""(?:href="|url\()#([^")]+)""", found))
    assert wanted
    assert wanted <= set(ids)
    assert len(ids) == len(set(ids))
    assert len({id.partition("-")[0] for id in ids}) == 1
    for name in set(re.findall(r'class="([^"]+)"', found)):
        assert f".{name}{{" in found
    assert "style=" not in found


def test_the_lighter_of_two_pictures_is_shown(svg, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "HEAVY", 10)
    (tmp_path / "figure.svg").write_text(svg, encoding="utf-8")
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + (300).to_bytes(4, "big")
    for size, shown in ((100, "<img"), (10**6, "<svg")):
        (tmp_path / "figure.png").write_bytes(png + bytes(size))
        assert picture.of(tmp_path, "p/fig1", "A title")[0].startswith(shown)
    assert picture.of(tmp_path / "none", "p/fig1", "A title") == ("", 0.0)


PLAIN = (
    '<svg width="9pt"><g id="a" style="fill: #fff; clip-path: url(#a)"><path d="M 0 0"/></g></svg>'
)


@pytest.mark.parametrize("text", [svg for svg in SVGS if re.search("<svg.*>", svg)])
def test_a_picture_from_elsewhere_is_an_image_in_which_nothing_runs(tmp_path, text):
    (tmp_path / "figure.svg").write_text(text, encoding="utf-8")
    found, _ = picture.of(tmp_path, "p/fig1", "A title")
    if found.startswith("<img"):
        assert re.fullmatch(r'<img src="data:image/svg[+]xml;base64,[^"<>]*" alt="A title">', found)
    else:
        reader = Scripts()
        reader.feed(found)
        assert not reader.found


def test_a_saved_picture_keeps_its_styles_in_the_page(tmp_path):
    drawn = mpl.Figure(figsize=(3, 2))
    drawn.subplots().plot([0, 1, 2], [0, 2, 1], color="#123456")
    (tmp_path / "figure.svg").write_bytes(judge._saved(drawn, "svg"))
    found, _ = picture.of(tmp_path, "p/fig1", "A title")
    assert found.startswith("<svg")
    assert "stroke: #123456" in found
    classes = set(re.findall(r'class="([^"]+)"', found))
    assert classes
    assert all(f".{name}{{" in found for name in classes)


def test_one_of_shapes_and_words_stays_in_the_page(tmp_path, svg):
    for text in (svg, PLAIN):
        (tmp_path / "figure.svg").write_text(text, encoding="utf-8")
        assert picture.of(tmp_path, "p/fig1", "A title")[0].startswith("<svg")
    for part in ("script", "a", "foreignObject", "animate", "iframe", "div"):
        (tmp_path / "figure.svg").write_text(PLAIN.replace("path", part), encoding="utf-8")
        assert picture.of(tmp_path, "p/fig1", "A title")[0].startswith("<img")


@pytest.mark.parametrize("spoilt", [b"", b"\xff\xfe", b"no picture", b"<svg"])
@pytest.mark.parametrize("file", ["figure.svg", "figure.png"])
def test_a_damaged_picture_is_named(tmp_path, file, spoilt):
    (tmp_path / file).write_bytes(spoilt)
    with pytest.raises(DitherError, match=rf"{file} can't be read .*: delete it and run `dither"):
        picture.of(tmp_path, "p/fig1", "A title")


def test_a_saved_picture_is_a_file_by_itself():
    drawn = mpl.Figure(figsize=(3, 2))
    drawn.subplots().plot([0, 1, 2], [0, 2, 1])
    saved = judge._saved(drawn, "svg")
    root = ElementTree.fromstring(saved)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert root.get("width") == "216pt"
    rules = "".join(style.text or "" for style in root.iter(f"{svg}style"))
    classes = {e.get("class") for e in root.iter() if e.get("class")}
    assert classes
    assert all(f".{name}{{" in rules for name in classes)
