"""The site keeps its word: every public name is in its reference, links lead somewhere, and the
built pages load nothing from elsewhere.
"""

import ast
import re
import shutil
from pathlib import Path

import pytest

import dither
from dither import measures
from dither.lab import catalogue
from docs.site import assemble
from docs.site._ext import docstrings, figures, galleryorder

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
BUILT = ROOT / "build" / "site" / "html"
GENERATED = re.compile(r"(examples|api)/")  # Sphinx writes these
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc=\"([^\"]+)\""
    r"|<link\b(?=[^>]*?rel=\"(?:stylesheet|(?:shortcut )?icon|preload|manifest)\")"
    r"[^>]*?href=\"([^\"]+)\""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that Sphinx reads."""
    folder = tmp_path_factory.mktemp("site")
    assemble.assemble(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """{name: text} of its pages."""
    return {str(p.relative_to(site)): p.read_text(encoding="utf-8") for p in site.rglob("*.md")}


def test_every_public_name_is_in_the_reference():
    text = (SITE / "reference.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    assert not set(dither.__all__) - words
    listed = set(re.findall(r"^ +measures\.(\w+)$", text, re.M)) | {"trace"}
    assert listed == set(measures.__all__)


def test_every_script_of_the_gallery_has_its_place():
    scripts = {path.name for path in (SITE / "gallery").glob("*.py")}
    assert scripts == set(galleryorder.ORDER)
    for name in scripts:
        doc = ast.get_docstring(ast.parse((SITE / "gallery" / name).read_text(encoding="utf-8")))
        assert doc, name
        title, line = doc.splitlines()[:2]
        assert len(line) == len(title), name
        assert "**Question: " in doc, name


def slug(head: str) -> str:
    """A heading's anchor."""
    return re.sub(r"[^\w\- ]", "", head.strip().lower().replace(" ", "-"))


def test_links_between_pages_lead_somewhere(pages):
    heads = {n: set(map(slug, re.findall(r"^#+ (.+)$", t, re.M))) for n, t in pages.items()}
    wrong = []
    for name, text in pages.items():
        if name.startswith("source/"):
            continue
        text = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.M | re.S)
        for link in (link for link in LINK.findall(text) if not re.match(r"\w+:", link)):
            path, _, anchor = link.partition("#")
            target = (Path("/", name).parent / path).resolve() if path else Path("/", name)
            inside = str(target)[1:]
            if GENERATED.match(inside):
                script = SITE / "gallery" / f"{target.name}.py"
                wrong += [] if target.name == "index" or script.is_file() else [(name, link)]
                continue
            inside = inside if inside.endswith(".md") else f"{inside}.md"
            if inside not in pages or (anchor and anchor not in heads[inside]):
                wrong.append((name, link))
    assert not wrong


def test_every_figure_has_a_page_with_its_claims(pages):
    for name in catalogue.names():
        page, index = pages[f"papers/{name}.md"], pages[f"papers/{name.split('/')[0]}/index.md"]
        assert f":link: {name.split('/')[1]}\n" in index
        stores = [ROOT / store / "figures" / name for store in figures.RECORDS]
        stores = [store for store in stores if (store / "claims.json").is_file()]
        for store in stores:  # records of each scale
            about, claims = figures.record(store)
            assert f"--scale {about['scale']} --out {store.parents[2].relative_to(ROOT)}" in page
            assert all(f" · {figures.plain(c['id'])}: " in page for c in claims)
        assert page.count(":class: figure") == len(stores)
        if stores:
            assert page.count(":::{dropdown}") == sum(len(figures.record(s)[1]) for s in stores)
        if not stores and name in figures.quick():
            assert "## At the quick scale" in page


def test_every_picture_of_a_page_is_there(site):
    wrong = []
    for page in site.rglob("*.md"):
        for name in re.findall(r"^ *`{3}\{image\} (\S+)$", page.read_text(encoding="utf-8"), re.M):
            inside = (page.parent / name).resolve()
            if GENERATED.match(str(inside.relative_to(site.resolve()))):
                continue
            wrong += [] if inside.is_file() else [(page.name, name)]
    assert not wrong


def test_the_tally_is_of_the_first_record():
    first = ":::{dropdown} ✓ holds · A: a\n:::{dropdown} ✗ fails · B: b\n"
    second = "\n## The paper scale\n\n:::{dropdown} – not judged · A: a\n"
    assert figures.tally(first + second) == "2 claims: 1 ✓, 1 ✗"
    assert figures.tally("text") == "not run at the quick scale"


def test_a_damaged_record_is_left_out(tmp_path, monkeypatch):
    """The page shows what can be read, first the scale that judges more; else results."""
    name = "levi2022/fig2"
    for store in figures.RECORDS:
        shutil.copytree(ROOT / store / "figures" / name, tmp_path / store / "figures" / name)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    scales = [figures.record(store)[0]["scale"] for store in figures.stored(name)]
    assert scales == ["decisive", "paper"]
    (tmp_path / "records/decisive/figures" / name / "figure.json").unlink()
    assert [figures.record(store)[0]["scale"] for store in figures.stored(name)] == ["paper"]
    (tmp_path / "records/figures" / name / "figure.json").unlink()
    assert figures.stored(name) == []


def test_a_docstring_becomes_fields_and_formulae():
    text = """One sentence with `code` and a*b.

seed      the seed
          of the draws.
batch_dim the dimension.

    R = ½ σ²
"""
    made = docstrings.converted(text.splitlines())
    assert made[0] == "One sentence with ``code`` and a\\*b."
    assert "**seed**" in made
    assert "    the seed of the draws." in made
    assert "**batch_dim**" in made
    assert made[made.index("::") + 2] == "    R = ½ σ²"


def test_the_katex_files_are_all_there():
    folder = SITE / "_static" / "katex"
    css = (folder / "katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"url\(([^)]+)\)", css))
    assert fonts
    assert not [font for font in fonts if not (folder / font).is_file()]


def test_the_built_pages_load_nothing_from_elsewhere():
    if not (BUILT / "index.html").is_file():
        pytest.skip("the site is not built: `make site`")
    foreign = []
    for page in BUILT.rglob("*.html"):
        found = LOADED.findall(page.read_text(encoding="utf-8"))
        foreign += [(page.name, a or b) for a, b in found if re.match(r"(https?:)?//", a or b)]
    for sheet in BUILT.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8"))
        foreign += [(sheet.name, url) for url in urls if re.match(r"(https?:)?//", url)]
    assert not foreign


def test_a_lone_bracket_takes_no_link_away(tmp_path):
    """A cell of a table may hold an interval that was cut, [0.1, or half of one, (0, 1]."""
    origin = ROOT / "docs" / "claims.md"
    link, page = "[see [1] there]", "../dither/papers/levi2022/fig6.py"
    for before in ("between [0.1, …", "below (0, 1]", "[a [b] c", "[0, 1] [("):
        for between in (" |\n| ", "\n\n"):
            text = f"| {before}{between}[L13]({page}) |\n| {link}({page}) |\n"
            out = assemble.Assembled(tmp_path).relinked(text, origin, "claims.md")
            assert out.count("(papers/levi2022/fig6.md)") == 2, text
