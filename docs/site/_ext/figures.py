"""The papers' figures as pages: title, caption, picture, claims and what came of them. Everything
is read from files: records/, results/ for a figure that has no records, and docs/verdicts.md.
Nothing is computed.
"""

import re
from pathlib import Path
from typing import Any

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.page.verdicts import VERDICTS, judged, readable
from dither.lab.wording import title_and_caption

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
RECORDS = ("records", "records/decisive")  # all that have a figure are shown
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|$#])")
PAPERS = {
    "camuto2020": "Camuto et al. 2020: noise on activations",
    "levi2022": "Levi et al. 2022: noise nodes",
    "orvieto2022": "Orvieto et al. 2022: noise on weights",
    "beyond": "Beyond the papers",
}


def page_of(inside: str) -> str | None:
    """The page of a figure's file: dither/papers/levi2022/fig3.py → papers/levi2022/fig3.md."""
    found = re.fullmatch(r"dither/papers/(\w+/\w+)\.py", inside)
    return f"papers/{found.group(1)}.md" if found and found.group(1) in catalogue.names() else None


def pages(out: Any) -> dict[str, str | bytes]:
    """{name of a file of the site: its content}."""
    verdicts, files = quick(), {}
    names = catalogue.names()
    for name in names:
        stores = stored(name)
        for store, picture in zip(stores, pictures(name, stores), strict=True):
            if (store / "figure.svg").is_file():
                files[f"papers/{picture}"] = (store / "figure.svg").read_bytes()
        files[f"papers/{name}.md"] = page(name, stores, verdicts.get(name, ""), out)
    for paper in dict.fromkeys(name.split("/")[0] for name in names):
        mine = [name for name in names if name.startswith(f"{paper}/")]
        files[f"papers/{paper}/index.md"] = contents(paper, mine, files)
    return files


def stored(name: str) -> list[Path]:
    """The folders that have the figure, first the one that judges most claims: records of all
    scales, or else results.
    """
    found = [ROOT / store / "figures" / name for store in RECORDS]
    found = [f for f in found if record(f)[0]]
    last = ROOT / "results" / "figures" / name
    if not found and (last / "claims.json").is_file():
        return [last]
    return sorted(found, key=lambda f: -sum(c["holds"] is not None for c in record(f)[1]))


def pictures(name: str, stores: list[Path]) -> list[str]:
    """The pictures' names: levi2022/fig2.svg, levi2022/fig2_2.svg."""
    return [f"{name}{f'_{i + 1}' * (i > 0)}.svg" for i in range(len(stores))]


def quick() -> dict[str, str]:
    """{figure: its section of docs/verdicts.md, without the heading}."""
    text = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ([\w/]+)$", text, flags=re.M)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def page(name: str, stores: list[Path], verdicts: str, out: Any) -> str:
    """The page of one figure."""
    title, caption = title_and_caption(catalogue.doc(name))
    parts = [f"# {plain(title)}", f"`{name}` · {source(name, out)}", prose(caption)]
    kept = [record(store) for store in stores]
    for i, picture in enumerate(pictures(name, stores)):
        about, claims = kept[i]
        if not about:
            continue
        if i:
            parts.append(f"## The {about['scale']} scale")
        if (stores[i] / "figure.svg").is_file():
            tail = picture.split("/")[1]
            parts.append(f"```{{image}} {tail}\n:alt: {title}\n:class: figure\n```")
        parts.append(origin(about))
        if claims:
            parts += [] if i else ["## Claims", f"At the {about['scale']} scale."]
            parts += map(claim, claims)
    if verdicts:
        table = verdicts.partition("\n")[2].strip()
        first = re.search(r"(\d+) seeds?\.", verdicts.partition("\n")[0])
        seeds = f" with {first.group(0)[:-1]}" if first else ""
        parts += ["## At the quick scale", f"What `make reproduce` gave{seeds}.", warned(out, name)]
        parts.append(out.relinked(table, ROOT / "docs" / "verdicts.md", f"papers/{name}.md"))
    if kept and kept[0][0].get("departures"):
        parts += ["## What differs from the paper"]
        parts.append("\n".join(f"- {plain(line)}" for line in kept[0][0]["departures"]))
    parts += ["## Run it", "```console\n" + "\n".join(commands(name, stores, kept)) + "\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def commands(name: str, stores: list[Path], kept: list[Any]) -> list[str]:
    """How to compute what the page shows."""
    roots = [store.parents[2].relative_to(ROOT) for store in stores]
    said = [
        f"$ dither reproduce {name} --scale {about['scale']} --out {root}"
        + "  # the page shows a part of it" * bool(about["missing"])
        for root, (about, _) in zip(roots, kept, strict=True)
        if about
    ]
    return said or [f"$ dither reproduce {name}"]


def warned(out: Any, name: str) -> str:
    """What docs/verdicts.md says of all its verdicts in bold, if it does."""
    head = (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8").partition("\n## ")[0]
    bold = "\n\n".join(part for part in head.split("\n\n") if part.startswith("**"))
    return out.relinked(bold, ROOT / "docs" / "verdicts.md", f"papers/{name}.md")


def record(store: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """figure.json and claims.json, empty where there are none."""
    try:
        return judged(store) if store else ({}, [])
    except DitherError:
        return {}, []


def source(name: str, out: Any) -> str:
    """A link to the figure's code."""
    file = ROOT / "dither" / "papers" / f"{name}.py"
    return f"[the code](../../{out.source(file)})"


def origin(about: dict[str, Any]) -> str:
    """Scale, seeds, machine, versions and date of a picture."""
    seeds = len(about["seeds"]) - len(about["left out"])
    said = [f"{about['scale']} scale", f"{seeds} seed{'s' * (seeds != 1)}"]
    said += [*about.get("machines", [])[:1], *about.get("versions", [])[:1]]
    said.append(about.get("finished", "")[:10])
    return f"*{plain(' · '.join(filter(None, said)))}*"


def claim(entry: dict[str, Any]) -> str:
    """A claim with its verdict, and its numbers in a part that opens."""
    word, mark = VERDICTS[entry["holds"]]
    kind = {True: "success", False: "danger", None: "secondary"}[entry["holds"]]
    numbers = [f"- {plain(key)}: {plain(readable(v))}" for key, v in entry["numbers"].items()]
    body = "\n".join(numbers) or "- no numbers"
    head = f"{mark} {word} · {entry['id']}: {' '.join(entry['claim'].split())}"
    return f":::{{dropdown}} {plain(head)}\n:color: {kind}\n\n{body}\n:::"


def contents(paper: str, names: list[str], files: dict[str, Any]) -> str:
    """The page of a paper: a card for each figure."""
    parts = [f"# {PAPERS[paper]}"]
    if paper != "beyond":
        parts.append(f"*{plain(catalogue.paper(paper))}*")
    parts.append("::::{grid} 1 2 2 3\n:gutter: 3\n")
    for name in names:
        tail = name.split("/")[1]
        picture = f":img-top: {tail}.svg\n" if f"papers/{name}.svg" in files else ""
        body = tally(str(files[f"papers/{name}.md"]))
        parts.append(
            f":::{{grid-item-card}} {tail}\n:link: {tail}\n:link-type: doc\n{picture}\n"
            f"{plain(catalogue.title(name))}\n\n{body}\n:::"
        )
    parts.append("::::")
    tails = "\n".join(name.split("/")[1] for name in names)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{tails}\n```")
    return "\n".join(parts) + "\n"


def tally(text: str) -> str:
    """How many of a figure's claims hold, fail and are not judged, where its page begins."""
    text = text.partition("\n## The ")[0]
    marks = re.findall(r"^:::\{dropdown\} (.)", text, re.M) or re.findall(
        r"^\| (.)[^|]* \| \*\*", text, re.M
    )
    said = [f"{marks.count(m)} {m}" for _, m in VERDICTS.values() if m in marks]
    return f"{len(marks)} claims: {', '.join(said)}" if marks else "not run at the quick scale"


def prose(text: str) -> str:
    """A caption: its paragraphs escaped, its indented formulae as code."""
    parts = re.split(r"\n\n", text)
    return "\n\n".join(
        "```text\n" + re.sub(r"^ {4}", "", part, flags=re.M).rstrip() + "\n```"
        if part.startswith("  ")
        else plain(part)
        for part in parts
    )


def plain(text: str) -> str:
    """Text in which no character means anything to Markdown, but for `code`."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))
