"""What every test shares: one thread, and a seed."""

import pytest
import torch

torch.set_num_threads(1)  # small nets, several test processes, sums in one order


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Tests of Fashion-MNIST stand aside where it is not to be had."""
    try:
        return (yield)
    except Exception as error:
        from dither.lab.data import needs

        if "fashion-mnist" in str(error) and not needs.found("fashion-mnist"):
            pytest.skip("Fashion-MNIST is not on this machine: `make data` installs or fetches it")
        raise
