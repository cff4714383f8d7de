"""A run that was killed goes on to the same rows, bit for bit; a wrong checkpoint is set aside."""

import multiprocessing
import pickle
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import DIGITS, SEEDS, regression, run

from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import CNN, Conv, levi_vgg
from dither.lab.training import checkpoint
from dither.lab.training.checkpoint import Keeper
from dither.lab.training.loop import Training, train
from dither.lab.training.optimiser import SGD, Adam, AntiPGD, Langevin, RMSprop
from dither.lab.training.watch import Accuracy, Loss, NodeNorms, WithNoise
from dither.noise import Additive, Node, Weight
from dither.schedule import Until

SPAWN = multiprocessing.get_context("spawn")
LOOKS = (Loss("train", 3), Accuracy("test", 0), NodeNorms(5), WithNoise(Loss("test", 4), draws=2))
IMAGES = replace(DIGITS, flat=False)
DROPOUT = CNN((Conv(3, kernel=3, norm=True, pool=2, dropout=0.3), Conv(4, kernel=3)), dense=(8,))
CASES = {
    "node, momentum, cosine": run(
        noise={"fc0": Node(3.0)},
        optimiser=SGD(0.05, momentum=0.9),
        schedule="cosine",
        watch=LOOKS,
    ),
    "weight in turn, adam": run(noise=Weight(0.05), draw="cycle", optimiser=Adam(0.003)),
    "weight by lot": run(noise=Weight(0.05), draw="random"),
    "schedule, stop": run(noise=Additive(Until(0.2, 11)), steps=None, epochs=8, stop=0.5),
    "sampled": run(noise=Additive(0.1), objective="sampled", watch=LOOKS[:2]),
    "dropout and norm": run(data=IMAGES, model=DROPOUT, noise=Additive(0.1), steps=9, watch=LOOKS),
    "langevin": run(optimiser=Langevin(SGD(0.05), 0.01)),
    "anti-pgd": run(optimiser=AntiPGD(RMSprop(0.001), 0.01)),
    "inside": run(optimiser=RMSprop(0.001, root="inside")),
    "diverges": regression(optimiser=SGD(1e4)),
    "full batch": regression(noise=Additive(0.1)),
    "own data": run(data=replace(DIGITS, subset_seed=None)),
    "bf16": run(noise=Additive(0.1), precision="bf16"),
}


class Stop(Exception):
    """The run ends here, as if killed."""


class Killer(Silent):
    """Raises at a step. (The progress is told before the checkpoint of its step is written.)"""

    def __init__(self, monkeypatch, at: int) -> None:
        self.at, self.seen = at, 0
        state = Training.state

        def counted(training):
            self.seen += 1
            if self.seen > self.at:
                raise Stop
            return state(training)

        monkeypatch.setattr(Training, "state", counted)


def keeper(folder, what: Run, said: list[str] | None = None) -> Keeper:
    return Keeper(folder, what.key, (said if said is not None else []).append)


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["stacked", "serial"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_that_stops_anywhere_goes_on_to_the_same_rows(case, seeds, tmp_path, monkeypatch):
    expected = train(case, seeds, Silent())
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    got, told = None, []
    for at in (1, 2, 5, 3, 1):  # steps from one kill to the next
        with monkeypatch.context() as patch:
            Killer(patch, at)
            try:
                got = train(case, seeds, Silent(), keeper=keeper(tmp_path, case, told))
                break
            except Stop:
                assert list(tmp_path.glob(".*.checkpoint"))
    got = got or train(case, seeds, Silent(), keeper=keeper(tmp_path, case, told))
    assert told
    assert all("goes on from step" in sentence for sentence in told)
    assert got == expected or repr(got) == repr(expected)  # nan is not nan


class Signals(Keeper):
    """Adds a byte to a file for each checkpoint it has written."""

    ready: Path

    def save(self, seeds, state):
        super().save(seeds, state)
        with self.ready.open("ab") as file:
            file.write(b".")


def forked(what: Run, seeds, folder: Path) -> None:
    """A process that trains with a checkpoint at every step, and writes its rows at the end."""
    torch.set_num_threads(1)
    checkpoint.EVERY = 0

    def tell(text: str) -> None:
        with (folder / "told").open("a") as file:
            file.write(text + "\n")

    keeper = Signals(folder / "kept", what.key, tell)
    keeper.ready = folder / "ready"
    rows = train(what, seeds, Silent(), keeper=keeper)
    (folder / "part").write_bytes(pickle.dumps(rows))
    (folder / "part").replace(folder / "rows")


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["stacked", "serial"])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_rows(seeds, tmp_path):
    what = run(
        noise={"fc0": Node(3.0)}, optimiser=SGD(0.05, momentum=0.9), schedule="cosine",
        steps=None, epochs=100, stop=0.999, watch=LOOKS,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = train(what, seeds, Silent())
    torch.set_num_threads(threads)
    moment, kills, ready = random.Random(0), 0, tmp_path / "ready"
    while not (tmp_path / "rows").exists():
        process = SPAWN.Process(target=forked, args=(what, seeds, tmp_path))
        process.start()
        least = moment.randint(1, 15)
        while kills < 2 and process.is_alive():
            if ready.exists() and ready.stat().st_size >= least:
                process.kill()
                break
            time.sleep(0.001)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += not (tmp_path / "rows").exists()
        ready.unlink(missing_ok=True)
    told = (tmp_path / "told").read_text().splitlines()
    assert len(told) == kills > 0
    assert all("goes on from step" in sentence for sentence in told)
    assert pickle.loads((tmp_path / "rows").read_bytes()) == expected


def kept(what: Run, folder, monkeypatch) -> None:
    """A checkpoint in the middle of a run."""
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    with monkeypatch.context() as patch:
        Killer(patch, 3)
        with pytest.raises(Stop):
            train(what, [4], Silent(), keeper=keeper(folder, what))


def flipped(payload: bytes, bit: int) -> bytes:
    changed = bytearray(payload)
    changed[bit // 8 % len(payload)] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("lot", range(6))
def test_a_damaged_checkpoint_is_set_aside(tmp_path, monkeypatch, lot):
    what, said, lots = run(steps=5), [], random.Random(lot)
    kept(what, tmp_path, monkeypatch)
    (path,) = tmp_path.glob(".*.checkpoint")
    payload = path.read_bytes()
    spoil = [
        lambda: flipped(payload, lots.randrange(8 * len(payload))),
        lambda: payload[: lots.randrange(len(payload))],
        lambda: lots.randbytes(100),
    ]
    path.write_bytes(spoil[lot % 3]())
    rows = train(what, [4], Silent(), keeper=keeper(tmp_path, what, said))
    assert rows == train(what, [4], Silent())
    assert len(said) == 1
    assert "is set aside (it is damaged): the run starts at its first step" in said[0]
    assert path.with_suffix(".aside").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda patch: patch.setattr(checkpoint, "code", lambda: "another"), "its code is"),
        (lambda patch: patch.setattr(checkpoint, "FORMAT", 2), "its format is 1, and this .* is 2"),
        (lambda patch: patch.setattr(torch, "__version__", "9.9"), "its torch is"),
        (
            lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
            "its number of threads",
        ),
    ],
)
def test_a_checkpoint_of_another_program_is_set_aside(tmp_path, monkeypatch, change, said):
    what, told = run(steps=5), []
    kept(what, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        change(patch)
        assert keeper(tmp_path, what, told).load([4]) is None
    assert len(told) == 1
    assert re.search(said, told[0])


def test_a_checkpoint_of_another_run_is_set_aside(tmp_path, monkeypatch):
    what, other, told = run(steps=5), run(steps=6), []
    kept(what, tmp_path, monkeypatch)
    assert keeper(tmp_path, other, told).load([4]) is None
    assert "its run is" in told[0]


def test_a_checkpoint_is_written_no_more_often_than_it_should(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])
    kept, saved = keeper(tmp_path, run()), []
    monkeypatch.setattr(
        kept, "save", lambda *_: (saved.append(now[0]), setattr(kept, "last", now[0]))
    )
    for now[0] in range(1001):
        kept.tick([0], dict)
    assert saved == [300, 600, 900]
    assert checkpoint.EVERY == 300


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    what, said = run(steps=5), []
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    rows = train(what, [4], Silent(), keeper=keeper(blocked, what, said))
    assert rows == train(what, [4], Silent())
    assert all("can't be written" in sentence for sentence in said)
    assert said


def test_many_seeds_have_a_name_that_fits():
    names = [checkpoint.name(range(a, a + n)) for a in (0, 10**9) for n in (1, 2, 32, 1000)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 255


def test_every_spec_that_runs_can_be_kept():
    """Buffers, too: what a state holds is what a new training needs."""
    data = Data("mnist-5000", train=40, test=20, flat=False)
    net = replace(levi_vgg(), image=(1, 28, 28), dense=(10,))
    one, other = (Training(run(data=data, model=net, steps=3), (0,), False, "cpu") for _ in "ab")
    for x, y in one.batches():
        one.descend(x, y)
    other.restore(one.state())
    for a, b in zip(
        one.model.state_dict().values(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
