"""What every test shares: one thread, and a seed."""

import pytest
import torch
from tasks import paper

from dither.lab import reproduce as runner

torch.set_num_threads(1)  # small nets, several test processes, sums in one order


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's default generator before every test; ask for it by name to use the number."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """toy(fig1=plain(…), …) → reproduce, with results in tmp_path/results."""

    def toy(**figures):
        paper(tmp_path / "papers", monkeypatch, **figures)

        def reproduce(names="toy2024", scale="smoke", **more):
            return runner.reproduce(names, scale=scale, out=tmp_path / "results", **more)

        return reproduce

    return toy
