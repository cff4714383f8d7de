"""The prose keeps its word: links lead somewhere, the table of figures is today's."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dither import noise
from dither.errors import DitherError
from dither.lab.figure import Claim, Silent
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.noise import laws, noises
from dither.noise.draw import Source
from docs import claims, figures, verdicts
from setup import absolute

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """What headings are linked by: lower case, punctuation out, spaces to hyphens."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [next(filter(None, found)) for found in LINK.findall(text)]
    wrong = []
    for link in (link for link in links if not re.match(r"\w+:", link)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{page.name} links to {link}")
    return wrong


def test_links_lead_somewhere():
    assert not [link for page in PAGES for link in broken(page)]


def test_the_readme_of_a_release_has_absolute_links():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [next(filter(None, found)) for found in LINK.findall(readme)]
    released = absolute(readme, "https://home/it")
    found = [next(filter(None, found)) for found in LINK.findall(released)]
    assert len(found) == len(links) > 9
    for before, after in zip(links, found, strict=True):
        kind = "raw" if before.endswith(".svg") else "blob"
        assert after == (before if ":" in before else f"https://home/it/{kind}/main/{before}")


def test_one_version():
    said = {
        re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)[1]  # type: ignore[index]
        for name, pattern in {
            "pyproject.toml": r'^version = "(.+)"',
            "dither/__init__.py": r'^__version__ = "(.+)"',
            "CITATION.cff": r"^version: (.+)",
        }.items()
    }
    assert len(said) == 1


def test_the_table_of_figures_is_todays():
    page = figures.PAGE.read_text(encoding="utf-8")
    assert figures.renewed(page) == page, "run `make docs`"
    assert page.count("\n| [") == len(figures.catalogue.names())


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Writes levi2022/toy's results, the only figure there is."""
    folder = tmp_path / "figures" / "levi2022" / "toy"
    folder.mkdir(parents=True)
    number = {"mean": 0.5, "spread": 0.01, "kind": "sd", "n": 3}
    said = {"L19": ("a | b", False, {f"n{i}": number for i in range(6)}),
            "L20": ("c", None, {"why": "too\nshort"})}  # fmt: skip
    claims = [Claim(id, text, len) for id, (text, *_) in said.items()]  # type: ignore[arg-type]
    found = SimpleNamespace(claims=claims, claims_at=lambda scale: claims)
    monkeypatch.setattr(verdicts.catalogue, "names", lambda: ["levi2022/toy"])
    monkeypatch.setattr(verdicts.catalogue, "find", lambda name: found)
    monkeypatch.setattr(verdicts.catalogue, "title", lambda name: "A toy")

    def written(**about):
        entries = [
            {"id": id, "claim": text, "holds": holds, "numbers": numbers}
            for id, (text, holds, numbers) in said.items()
        ]
        whole = {"name": "levi2022/toy", "title": "A toy", "scale": "quick"}
        whole |= {"seeds": [0, 1, 2, 3], "left out": [3]} | about
        (folder / "claims.json").write_text(json.dumps(entries))
        (folder / "figure.json").write_text(json.dumps(whole))
        return tmp_path, found

    return written


def test_the_page_of_verdicts_has_each_claim(judged):
    results = judged()[0]
    page = verdicts.page(results, results)
    assert "2 claims: 0 hold, 1 fail, 1 are not judged." in page
    assert ", 3 seeds." in page
    assert r"| ✗ | **L19** a \| b | n0: 0.500 ± 0.010 (sd of 3) · " in page
    assert "and 2 more |" in page
    assert "| – | **L20** c | too short |" in page


def test_a_figure_that_was_not_run_says_why(judged):
    where = Path.home() / "data"
    assert "not run: put it into ~/data." in verdicts.page(
        judged(problem=f"put it into {where}")[0]
    )


def test_a_verdict_that_a_record_contradicts_points_to_it(judged, tmp_path):
    results = judged()[0]
    page = verdicts.page(results, results)
    assert "paper scale: [" not in page
    other = tmp_path / "records/figures/levi2022/toy"
    other.mkdir(parents=True)
    entries = [{"id": "L19", "claim": "a | b", "holds": True, "numbers": {}, "seeds": 9}]
    (other / "claims.json").write_text(json.dumps(entries))
    about = {"name": "levi2022/toy", "title": "t", "scale": "paper", "seeds": [], "left out": []}
    (other / "figure.json").write_text(json.dumps(about))
    page = verdicts.page(results, tmp_path / "records")
    assert "| ✗ (paper scale: [holds](records.md)) | **L19**" in page
    assert page.count("paper scale: [") == 1


def test_the_page_of_claims_has_each_claim_of_the_papers():
    rows = re.findall(r"^\| \[([CLO]\d+)\]\(", claims.PAGE.read_text(encoding="utf-8"), re.M)
    wanted = [f"{letter}{i}" for letter, n in (("C", 15), ("L", 20), ("O", 19))
              for i in range(1, n + 1)]  # fmt: skip
    assert rows == wanted


def test_the_records_verdicts_are_on_the_page_of_claims():
    """What is recorded and judged stands there with its verdict; results/ may judge more."""
    text = claims.PAGE.read_text(encoding="utf-8")
    for paper in claims.PAPERS:
        for row in claims.originals.rows(paper, claims.originals.known(ROOT / "records")):
            if row.holds is not None and row.original.counts:
                (line,) = re.findall(rf"^\| \[{row.original.id}\].*$", text, re.M)
                assert f"| {claims.verdict(row.holds)} |" in line


def test_the_readme_counts_the_claims_as_their_page_does():
    readme, page = (path.read_text(encoding="utf-8") for path in (claims.README, claims.PAGE))
    assert claims.renewed(readme, page) == readme, "run `make docs`"
    cells = re.findall(r"^\| \[[CLO]\d+\].*?\| ([✓✗–○]) ", page, re.M)
    hold, fail, unclear = (cells.count(mark) for mark in "✓✗–")
    assert f" {hold} hold, {fail} fail, {unclear} are not judged yet:" in readme


def test_verdicts_of_another_scale_or_of_other_claims_are_no_page(judged):
    with pytest.raises(DitherError, match="at the scale paper"):
        verdicts.page(judged(scale="paper")[0])
    results, found = judged()
    found.claims.pop()
    with pytest.raises(DitherError, match="judged by other claims"):
        verdicts.page(results)
    (results / "figures/levi2022/toy/figure.json").unlink()
    with pytest.raises(DitherError, match="lacks levi2022/toy"):
        verdicts.page(results)


# ------------------------------------------------------------------- the recipes of CONTRIBUTING.md

RECIPES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S
)
LAW, NOISE, FIGURE = RECIPES
N = 200_000
Z = 5.5  # a false alarm in 26 million


def written(recipe: str, module: ModuleType = noise) -> dict:
    """What a recipe defines when it is put into that module."""
    names = dict(vars(module))
    exec(recipe, names)
    return names


def agrees(draws: torch.Tensor, truth: torch.Tensor) -> bool:
    """Whether the mean of draws [N, …] is the truth, in standard errors fixed beforehand."""
    z = (draws.mean(0) - truth) / (draws.std(0) / len(draws) ** 0.5)
    return bool((z.abs() < Z).all())


def test_the_recipe_for_a_law_is_a_law():
    law, like = written(LAW, laws)["Laplace"](), torch.empty(N, dtype=torch.float64)
    x = law.sample(Source([0]), like)
    assert x.isfinite().all()
    assert agrees(x, torch.tensor(0.0))
    assert agrees(x.square(), torch.tensor(law.variance))
    torch.testing.assert_close(law.sample(Source([0], reflect=True), like), -x)


def test_the_recipe_for_a_noise_has_two_faces_that_agree():
    sensor = written(NOISE, noises)["Sensor"](0.3, noise.uniform)
    h, g = torch.randn(4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    site = noise.Here(h.expand(N, 4, 6))
    delta = sensor.displace(site, Source([1]))  # [N, 4, 6]
    inner = torch.einsum("kbd,nbd->nkb", g, delta)
    assert agrees(delta, torch.zeros(4, 6))
    assert agrees(inner.square(), sensor.variance(g, noise.Here(h)))


def test_the_recipe_for_a_figure_runs(monkeypatch):
    monkeypatch.setattr(noise, "laplace", written(LAW, laws)["Laplace"](), raising=False)
    module = ModuleType("dither.papers.beyond.laplace")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(FIGURE, vars(module))
    runs = module.figure.at("smoke")
    table = Table.of({label: execute(run, [0, 1], Silent()) for label, run in runs.items()})
    (claim,) = module.figure.claims
    holds, numbers = claim.check(table)
    assert holds is bool((abs(numbers["z"]) > 4).all())
    assert module.figure.plot(table).axes
