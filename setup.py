"""The README as package indexes show it: links to files become links to the repository. All other
settings are in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)]+)\)")


def absolute(readme: str, home: str) -> str:
    """The text with absolute links. A picture is the file itself, any other link is its page."""

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        return f"{picture}{words}({home}/{'raw' if picture else 'blob'}/main/{target})"

    return LINK.sub(link, readme)


if __name__ == "__main__":
    about = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (home,) = re.findall(r'^Repository = "(.+)"', about, re.M)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(long_description=absolute(readme, home), long_description_content_type="text/markdown")
