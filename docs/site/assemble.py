"""The sources of the site in one folder: the pages of docs/site, those of docs/ and of the root,
a page for each figure, and a page for each source file that a page links to.

    python docs/site/assemble.py build/site/source
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
sys.path.insert(0, str(ROOT))

from docs.site._ext import figures  # noqa: E402

# The page of the site that a file of the repository becomes.
PAGES = {
    "docs/math.md": "math.md",
    "docs/gotchas.md": "gotchas.md",
    "docs/reliability.md": "reliability.md",
    "docs/scaling.md": "scaling.md",
    "docs/claims.md": "claims.md",
    "docs/verdicts.md": "verdicts.md",
    "docs/records.md": "records.md",
    "docs/figures.md": "figures.md",
    "records/README.md": "recorded.md",
    "benchmarks/README.md": "measured.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
OWN = {"index.md"}  # written for the site, not copied
# Pages whose tables need the whole width.
WIDE = {"claims.md", "verdicts.md", "records.md", "figures.md"}
FULL = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"
PICTURES = ("phases.svg", "growth.svg", "benchmarks.svg")
NOT_PAGES = {"assemble.py", "conftest.py", "_ext", "__pycache__"}
# Within one paragraph or one row of a table: a lone bracket before it takes no link away.
LINK = re.compile(r"(?<!!)\[((?:(?!\n[\n|])[^\[\]]|\[[^\[\]]*\])+)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*$", re.M | re.S)


class Assembled:
    """A folder that is written to. A file that stays the same keeps its time, so that Sphinx
    reads it once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.written, self.sources = folder, set(), set()

    def write(self, name: str, content: str | bytes) -> None:
        path, data = self.folder / name, content.encode() if isinstance(content, str) else content
        self.written.add(path)
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def page(self, name: str, text: str, origin: Path) -> None:
        """A page whose links are those of a file of the repository."""
        self.write(name, self.relinked(text, origin, name))

    def relinked(self, text: str, origin: Path, name: str) -> str:
        """The text with its links to files turned into links to pages. Code stays as it is."""
        kept = [(m.start(), m.end()) for m in FENCE.finditer(text)]

        def link(found: re.Match) -> str:
            words, target = found.groups()
            inside = any(start <= found.start() < end for start, end in kept)
            mine = SITE in origin.parents and not target.startswith("../")  # a link of the site
            if inside or mine or re.match(r"\w+:|#", target):
                return found.group(0)
            where = self.target(target, origin, name)
            words = re.sub(r"(?<=\w)\.md$", "", words)
            return f"[{words}]({where})" if where else words

        return LINK.sub(link, text)

    def target(self, target: str, origin: Path, name: str) -> str | None:
        """Where a link of the repository leads on the site. None if it has no place there."""
        path, _, anchor = target.partition("#")
        file = (origin.parent / path).resolve()
        if not file.is_file() or not file.is_relative_to(ROOT):
            return None
        inside = str(file.relative_to(ROOT))
        own = file.name if file.parent == SITE and file.suffix == ".md" else None
        page = PAGES.get(inside) or own or figures.page_of(inside) or self.source(file)
        up = "../" * name.count("/")
        return f"{up}{page}" + (f"#{anchor}" if anchor else "")

    def source(self, file: Path) -> str:
        """The page of a source file."""
        inside = file.relative_to(ROOT)
        name = f"source/{inside.with_suffix('')}.md"
        if file not in self.sources:
            self.sources.add(file)
            kind = {".py": "python", ".md": "markdown"}.get(file.suffix, "text")
            code = file.read_text(encoding="utf-8").rstrip()
            head = f"---\norphan: true\nnosearch: true\n---\n# `{inside}`\n\n"
            self.write(name, f"{head}``````{{code-block}} {kind}\n:linenos:\n\n{code}\n``````\n")
        return name

    def swept(self) -> None:
        """Remove what is no longer part of the site. sphinx-gallery and autosummary write into
        folders of their own.
        """
        for path in [p for p in self.folder.rglob("*") if p.is_file()]:
            part = path.relative_to(self.folder).parts[0]
            if path not in self.written and part not in (
                "examples",
                "api",
                "sg_execution_times.rst",
            ):
                path.unlink()


def assemble(folder: Path) -> Assembled:
    """Write everything that Sphinx reads."""
    out = Assembled(folder)
    for path in sorted(SITE.rglob("*")):
        inside = path.relative_to(SITE)
        if path.is_file() and not NOT_PAGES & set(inside.parts):
            if path.suffix == ".md":  # doctest needs an empty line at the end of a block
                text = path.read_text(encoding="utf-8").replace("\n\n```\n", "\n```\n")
                out.page(str(inside), text, path)
            else:
                out.write(str(inside), path.read_bytes())
    for origin, name in PAGES.items():
        if name not in OWN and (ROOT / origin).is_file():
            text = unmathed((ROOT / origin).read_text(encoding="utf-8"))
            out.page(name, FULL * (name in WIDE) + text, ROOT / origin)
    for picture in PICTURES:
        out.write(f"pictures/{picture}", (ROOT / "docs" / picture).read_bytes())
    for name, content in figures.pages(out).items():
        out.write(name, content)
    out.swept()
    return out


def unmathed(text: str) -> str:
    """Headings without formulae, which would be no part of their anchors."""
    return re.sub(r"^#.*$", lambda head: head.group(0).replace("$", ""), text, flags=re.M)


if __name__ == "__main__":
    shutil.rmtree(Path(sys.argv[1]) / "__pycache__", ignore_errors=True)
    done = assemble(Path(sys.argv[1]).resolve())
    print(f"{len(done.written)} files, {len(done.sources)} of them source files")
