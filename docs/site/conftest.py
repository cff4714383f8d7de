"""pytest runs the examples of the pages of this folder; it imports none of its scripts."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = ["*.py", "_ext/*.py", "gallery/*.py"]
LIBRARIES = ("lightning", "accelerate", "skorch")  # of libraries.md


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The page of libraries needs them, and their warnings are not ours."""
    absent = [name for name in LIBRARIES if find_spec(name) is None]
    for item in items:
        if item.path.name == "libraries.md":
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if absent:
                item.add_marker(pytest.mark.skip(reason=f"{absent[0]} is not installed"))
