"""The runs of a comparison: processes, resumption, failures, validation, trained models."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither.lab import SGD
from dither.lab.compare import Method, compare
from dither.lab.compare.quantities import SIGMA

torch.manual_seed(0)
X = torch.randn(80, 5)
Y = (X @ torch.randn(5, 3) + torch.randn(80, 3)).argmax(1)
DATA = (X[:50], Y[:50], X[50:], Y[50:])
METHODS = {"none": None, "noise": dither.Additive(0.3)}
SMALL = {"seeds": 2, "epochs": 2, "batch": 16}


def values(found, method="none"):
    return {q: v for q, v in found.values[method].items() if q != "ms/step"}


def same(one, two):
    for method in one.values:
        assert values(one, method).keys() == values(two, method).keys()
        for quantity, value in values(one, method).items():
            np.testing.assert_array_equal(value, two.values[method][quantity], quantity)


def test_processes_give_the_numbers_of_one_process_for_functions_without_a_name():
    width = 8  # in a closure, which only its value can bring to another process

    def make():
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))

    how = {"optimiser": lambda p: torch.optim.SGD(p, 0.1), "measures": lambda m, x, y: m(x).sum()}
    one = compare(make, DATA, METHODS, **how, **SMALL)
    two = compare(make, DATA, METHODS, jobs=2, **how, **SMALL)
    same(one, two)
    assert "<lambda>" in one.quantities
    for seed in (0, 1):
        weights = [found.models["noise"][seed].state_dict() for found in (one, two)]
        torch.testing.assert_close(*weights, rtol=0, atol=0)


def make_model():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(*args, **how):
    """(the comparison, the runs that were trained for it)."""
    told = []
    found = compare(*args, progress=lambda *run: told.append(run), **{**SMALL, **how})
    return found, [(method, seed) for method, seed, _, _ in told]


def test_what_is_finished_is_not_trained_again(tmp_path):
    one, first = trained(make_model, DATA, METHODS, out=tmp_path)
    assert len(first) == 4
    two, second = trained(make_model, DATA, METHODS, out=tmp_path)
    assert not second
    same(one, two)
    assert np.array_equal(one.values["none"]["ms/step"], two.values["none"]["ms/step"])
    _, more = trained(make_model, DATA, METHODS, out=tmp_path, seeds=3)
    assert more == [("none", 2), ("noise", 2)]
    _, again = trained(make_model, DATA, METHODS, out=tmp_path, again=True)
    assert len(again) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"batch": 8},
        {"optimiser": SGD(0.06)},
        {"optimiser": lambda p: torch.optim.SGD(p, 0.06)},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"measures": ["loss"]},
        {"validation": 0.2},
        {"schedule": "cosine"},
        {"match": 0.1},
        {"methods": {"none": None, "noise": dither.Additive(0.4)}},
        {"methods": {"none": None, "noise": Method(dither.Additive(0.3), objective="sampled")}},
        {"data": (X[:50] + 1e-3, *DATA[1:])},
        {"make_model": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))},
    ],
)
def test_what_differs_is_trained_anew(tmp_path, change):
    arguments = {"make_model": make_model, "data": DATA, "methods": METHODS, "seeds": 1}
    trained(**arguments, out=tmp_path)
    assert ("noise", 0) in trained(**{**arguments, **change}, out=tmp_path)[1]


def test_a_changed_module_of_the_users_is_trained_anew(tmp_path, monkeypatch):
    import importlib
    import sys

    source = "from torch import nn\ndef make(): return nn.Sequential(nn.Linear(5, 3), nn.{}())\n"
    (tmp_path / "mine_too.py").write_text(source.format("Identity"))
    (tmp_path / "mine.py").write_text("from mine_too import make\ndef model(): return make()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    out = tmp_path / "out"
    mine = importlib.import_module("mine")
    assert trained(mine.model, DATA, {"none": None}, out=out, seeds=1)[1]
    assert not trained(mine.model, DATA, {"none": None}, out=out, seeds=1)[1]
    (tmp_path / "mine_too.py").write_text(source.format("Softsign"))
    for name in ("mine", "mine_too"):
        del sys.modules[name]
    mine = importlib.import_module("mine")
    assert trained(mine.model, DATA, {"none": None}, out=out, seeds=1)[1]
    for name in ("mine", "mine_too"):
        del sys.modules[name]


def test_a_stopped_comparison_goes_on(tmp_path):
    told = []

    def stop(method, seed, done, total):
        told.append((method, seed))
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 runs finished and kept in .*goes on"):
        compare(make_model, DATA, METHODS, out=tmp_path, progress=stop, **SMALL)
    found, rest = trained(make_model, DATA, METHODS, out=tmp_path)
    assert set(told) | set(rest) == {(m, s) for m in METHODS for s in (0, 1)}
    assert not set(told) & set(rest)
    same(found, compare(make_model, DATA, METHODS, **SMALL))
    told.clear()
    with pytest.raises(KeyboardInterrupt, match="nothing is kept: pass out="):
        compare(make_model, DATA, METHODS, progress=stop, **SMALL)


def test_a_run_that_fails_is_named_and_the_others_finish():
    def fails(step):
        if step == 4:
            raise ValueError("no σ today")
        return 0.1

    methods = {"none": None, "bad": dither.Additive(fails), "good": dither.Additive(0.1)}
    found = compare(make_model, DATA, methods, **SMALL)
    assert set(found.failures) == {"bad · seed 0", "bad · seed 1"}
    assert "no σ today" in str(found)
    assert np.isfinite(found.values["good"]["loss/test"]).all()
    assert not found.values["bad"]
    assert not found.models["bad"]


def test_a_damaged_result_is_named(tmp_path):
    trained(make_model, DATA, METHODS, out=tmp_path)
    (rows,) = list(tmp_path.glob("runs/*/0/rows.parquet"))[:1]
    rows.write_bytes(b"x" + rows.read_bytes()[1:])
    with pytest.raises(dither.DitherError, match="is not what was sealed"):
        compare(make_model, DATA, METHODS, out=tmp_path, **SMALL)


# ------------------------------------------------------------------------------------- validation


def test_the_epoch_with_the_smallest_validation_loss_is_measured():
    seen = []

    def loss(z, y):
        return nn.functional.cross_entropy(z, y, reduction="none")

    def of_validation(model, x, y):
        return {"sum of weights": sum(float(p.sum()) for p in model.parameters())}

    how = {"loss": loss, "measures": of_validation, "seeds": 1, "batch": 10, "optimiser": SGD(1.0)}
    found = compare(make_model, DATA, {"none": None}, validation=0.3, epochs=40, **how)
    best = int(found.values["none"]["last epoch"][0])
    assert 1 <= best < 40
    shorter = compare(make_model, DATA, {"none": None}, validation=0.3, epochs=best, **how)
    seen = [f.values["none"]["sum of weights"][0] for f in (found, shorter)]
    assert seen[0] == seen[1]
    how |= {"validation": 0.3, "patience": 3}
    early = compare(make_model, DATA, {"none": None}, epochs=best + 9, **how)
    assert early.values["none"]["last epoch"][0] <= best


def test_the_test_part_decides_nothing():
    how = {"validation": 0.3, "patience": 2, "epochs": 20, "seeds": 1, "optimiser": SGD(0.5)}
    other = (*DATA[:2], torch.randn(9, 5), torch.randint(3, (9,)))
    weights = [
        compare(make_model, data, METHODS, **how).models["noise"][0].state_dict()
        for data in (DATA, other)
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_the_models_are_those_that_were_measured():
    found = compare(make_model, DATA, METHODS, **SMALL)
    for method in METHODS:
        for n, seed in enumerate(found.seeds):
            model = found.models[method][seed]
            right = (model(DATA[2]).argmax(1) == DATA[3]).double().mean()
            assert found.values[method]["accuracy/test"][n] == pytest.approx(float(right))


def test_all_measures_by_name():
    names = ["loss", "accuracy", "calibration", "R", "corruption", "attack", "margin", "trace"]
    found = compare(make_model, DATA, METHODS, measures=names, **SMALL)
    expected = {
        *("loss/train", "loss/test", "accuracy/train", "accuracy/test", "calibration error"),
        *("its chance level", "accuracy, s = 0.25", "accuracy, s = 0.5", "accuracy, s = 0.75"),
        *("accuracy, PGD ε = 0.05", "accuracy, PGD ε = 0.1", "median margin", "trace of Hessian"),
        *("ms/step", "R/loss, train", SIGMA),
    }
    assert set(found.quantities) - {"R/loss"} == expected
    assert all(np.isfinite(v).all() for v in values(found).values())
    clean, attacked = (found.values["none"][f"accuracy{q}"] for q in ("/test", ", PGD ε = 0.1"))
    assert (attacked <= clean).all()


ELSEWHERE = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from dither.lab.compare import compare
padding = [torch.ones(n) for n in range(int(sys.argv[2]))]  # other addresses than before
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
class Noisy(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(4), y
start = torch.arange(4.0).bfloat16()
def make_model():
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight += start.float()
    return net
if __name__ == "__main__":
    own = torch.Generator().manual_seed(7)
    train = DataLoader(Noisy(X, Y), batch_size=8, shuffle=True, generator=own)
    told = []
    found = compare(make_model, (train, TensorDataset(X, Y)), {"none": None}, seeds=2, epochs=1,
                    loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])), out=sys.argv[1],
                    jobs=int(sys.argv[3]), progress=lambda *run: told.append(run))
    assert not found.failures, found.failures
    print(len(told))
"""


def test_another_process_finds_what_is_finished(tmp_path):
    """Whatever tensors and generators the loss, the model and the loader hold."""
    (tmp_path / "mine.py").write_text(ELSEWHERE, encoding="utf-8")
    trained = []
    for padding, jobs in (("0", "2"), ("5", "1")):  # a data set of a script, in its workers too
        call = [sys.executable, str(tmp_path / "mine.py"), str(tmp_path / "out"), padding, jobs]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
        assert not done.returncode, done.stderr
        trained.append(int(done.stdout))
    assert trained == [2, 0]
