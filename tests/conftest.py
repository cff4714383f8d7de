"""What every test shares: one thread, a seed, and what stands aside where something is absent."""

import re
from pathlib import Path

import pytest
import torch

try:
    import polars  # noqa: F401

    LABORATORY = True
except ImportError:
    LABORATORY = False

torch.set_num_threads(1)  # small nets, several test processes, sums in one order
NEEDS_IT = re.compile(
    r"^\s*(from|import) (dither\.(lab|papers)|accelerate|benchmarks|docs|lightning|matplotlib|"
    r"polars|runs|scipy|sklearn|tasks|torchmetrics|toys|transformers|world)",
    re.MULTILINE,
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where only the library is installed (torch, numpy), files that need more stand aside."""
    if LABORATORY or collection_path.suffix != ".py":
        return None
    return bool(NEEDS_IT.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's default generator before every test; ask for it by name to use the number."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """toy(fig1=plain(…), …) → reproduce, with results in tmp_path/results."""
    from tasks import paper

    from dither.lab import reproduce as runner

    def toy(**figures):
        paper(tmp_path / "papers", monkeypatch, **figures)

        def reproduce(names="toy2024", scale="smoke", **more):
            return runner.reproduce(names, scale=scale, out=tmp_path / "results", **more)

        return reproduce

    return toy


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """No data set is found, but for those of packages, whatever this machine has."""
    from dither.lab.data import files

    monkeypatch.setenv("DITHER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Tests of Fashion-MNIST stand aside where it is not to be had."""
    try:
        return (yield)
    except Exception as error:
        if not LABORATORY or "fashion-mnist" not in str(error):
            raise
        from dither.lab.data import needs

        if not needs.found("fashion-mnist"):
            pytest.skip("Fashion-MNIST is not on this machine: `make data` installs or fetches it")
        raise
