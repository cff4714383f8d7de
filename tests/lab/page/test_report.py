import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markupsafe import escape
from tasks import paper, plain

from dither.lab import reproduce as runner
from dither.lab.page import picture, report

ROOT = Path(__file__).parents[3]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every element with its attributes, and whether they close in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.errors, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> in line {self.getpos()[0]}")

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with results of three figures, and one figure without."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        good = plain(departures=["smoke: 3 steps", "quick: not at this scale", "always"])
        words = good.replace("faster is lower", "a < b & c")
        fail = words.replace("return bool(", "return not bool(").replace("T1", "T2")
        open_ = good.replace("return bool((fast < slow).all())", "return None").replace("T1", "T3")
        paper(
            folder / "papers", patch, fig1=good, fig2=fail, fig3=open_, fig4=good,
            fig5=plain(needs=("imagenet",)),
        )  # fmt: skip
        names = [f"toy2024/fig{i}" for i in (1, 2, 3, 5)]
        runner.reproduce(names, scale="smoke", out=folder / "results")
        yield folder / "results"


@pytest.fixture(scope="module")
def page(results):
    return Page((results / "index.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed(page):
    assert not page.errors
    assert not page.open


def test_the_page_fetches_nothing(results, page):
    text = (results / "index.html").read_text(encoding="utf-8")
    assert not [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "base")]
    sources = [*page.all("src"), *page.all("href"), *page.all("xlink:href"), *page.all("srcset")]
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    named = {
        value for tag, attrs in page.elements for k, value in attrs.items() if k.startswith("xmlns")
    }
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= named  # names of namespaces only


def test_ids_are_unique_and_references_land(page):
    ids = Counter(page.all("id"))
    assert not {name: n for name, n in ids.items() if n > 1}
    targets = {
        href[1:] for href in [*page.all("href"), *page.all("xlink:href")] if href.startswith("#")
    }
    assert targets <= set(ids)


def test_headings_descend_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_pictures_have_words(page):
    pictures = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(pictures) == 3
    assert all(a["role"] == "img" and a["aria-label"] == "Figure 1: a decay" for a in pictures)


def test_the_page_says_what_holds(page):
    words = " ".join(" ".join(page.words).split())
    holds, fails, not_judged = 1, 1, 2
    assert f"Toy et al. 2024 {holds} {fails} {not_judged} smoke 2" in words
    assert "Toy et al. 2024, On Nothing" in words
    assert "✓ holds T1 faster is lower" in words
    assert "✗ fails T2 a < b & c" in words
    assert "– not judged T3" in words
    assert "fast 0.13586 ± 0.00071 (sd of 2)" in words


def test_the_page_says_where_it_comes_from(results, page):
    words = " ".join(" ".join(page.words).split())
    assert "smoke: 3 steps" in words
    assert "always" in words
    assert "not at this scale" not in words
    assert f"dither reproduce toy2024/fig1 --scale smoke --out {results}" in words
    assert re.search(r"machine .+ cores?, \w+ versions .*Python 3\.", words)
    assert "Two rates, one faster. · Toy et al. 2024, Fig. 1 What decay gives, < 1:" in words
    assert "    f(t) = exp(−rate · t)" in page.words


def test_the_page_names_what_was_not_run(page):
    words = " ".join(" ".join(page.words).split())
    assert "Not run: data absent: data 'imagenet' is not here" in words
    assert "Without results here Toy et al. 2024, On Nothing Figure 1: a decay" in words
    assert "dither reproduce toy2024/fig4" in words


def test_a_heavy_picture_is_shown_as_pixels(results, monkeypatch):
    monkeypatch.setattr(picture, "HEAVY", 10)
    monkeypatch.setattr(picture, "_inlined", lambda *_: ("x" * 10**6, 460.0, True))
    text = report.write_page(results).read_text(encoding="utf-8")
    assert text.count('<img src="data:image/png;base64,') == 3
    assert "--points: 216" in text  # 3 inches
    monkeypatch.undo()
    report.write_page(results)


def test_an_empty_folder_has_a_page_too(tmp_path):
    text = report.write_page(tmp_path).read_text(encoding="utf-8")
    assert "No figure has results here yet" in text
    assert not Page(text).errors


def test_a_damaged_result_is_named(results):
    path = results / "figures" / "toy2024" / "fig1" / "claims.json"
    before = path.read_text(encoding="utf-8")
    path.write_text("[", encoding="utf-8")
    try:
        text = report.write_page(results).read_text(encoding="utf-8")
        (sentence,) = report.problems(results)
        assert re.search(r"claims.json can't be read .*: delete it and run `dither repr", sentence)
        assert f"<strong>Left out:</strong> {escape(sentence)}" in text
        assert "toy2024/fig2 ·" in text
    finally:
        path.write_text(before, encoding="utf-8")


def test_a_result_whose_figure_is_gone_is_still_shown(results, tmp_path):
    folder = tmp_path / "figures" / "gone2020" / "fig1"
    folder.mkdir(parents=True)
    about = json.loads((results / "figures/toy2024/fig1/figure.json").read_text(encoding="utf-8"))
    (folder / "figure.json").write_text(
        json.dumps({**about, "name": "gone2020/fig1"}), encoding="utf-8"
    )
    (folder / "claims.json").write_text("[]", encoding="utf-8")
    assert "gone2020/fig1" in report.write_page(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0.123456, "0.123"), (3, "3"), (1234567.0, "1\u2009234\u2009567"), (1e-9, "1e-9"),
        (2.5e12, "2.5e12"),
        ("none", "none"), (None, "–"), (True, "yes"), (-0.5, "-0.5"),
        ({"mean": 0.8316, "spread": 0.0062, "kind": "sd", "n": 2}, "0.8316 ± 0.0062 (sd of 2)"),
        ({"mean": 87.512, "spread": 1.234, "kind": "sem"}, "87.5 ± 1.2 (standard error)"),
        ({"mean": 12.0, "spread": 33.0}, "12 ± 33"), ({"mean": 1.0, "spread": 0.0}, "1 ± 0"),
        ({"mean": "nan", "spread": "nan"}, "nan ± nan"),
        ([0.31, 0.44, 0.521], "0.31, 0.44, 0.521"), ([], "none"), ([1, "nan"], "1, nan"),
        (list(range(300)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (300 in all)"),
        ({"mean": 5e4, "spread": 20.0}, "50\u2009000 ± 20"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(number, words):
    assert report.readable(number) == words


LIGHT = """
import sys
from pathlib import Path
from dither.lab.page import picture, report
report.write_page(Path(sys.argv[1]))
from dither.lab.cli import app
for words in (["--help"], ["report", "--out", sys.argv[1]], ["data"]):
    app(words, standalone_mode=False)
assert "torch" not in sys.modules, "torch was imported"
"""


def test_the_page_and_the_help_need_no_torch(tmp_path):
    command = [sys.executable, "-c", LIGHT, str(tmp_path)]
    (tmp_path / "figures").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
