"""The benchmark's own arithmetic: what it counts, checks, judges. Nothing here looks at a time."""

import json

import pytest
import torch

from benchmarks import clock, figures, growth, oracle, record, spent, targets
from benchmarks.__main__ import _kept
from benchmarks.methods import DITHER
from benchmarks.naive import NAIVE
from benchmarks.peers import PEERS
from benchmarks.workloads import WORKLOADS, Job, Workload

ALL = (*DITHER, *NAIVE, *(m for methods in PEERS.values() for m in methods))


@pytest.fixture
def job():
    torch.manual_seed(0)
    costs = ("R", "GN trace", "Hessian trace", "weights", "activations")
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    work = Workload("tiny", "tiny", lambda: net, 5, costs, classes=3)
    return Job(work, net.eval(), torch.randn(5, 4), torch.randint(3, (5,)))


def row(who="dither", *, median=1.0, verdict="same", environment="dither", sd=0.0):
    return {
        "workload": "mlp1024",
        "quantity": "GN trace",
        "who": who,
        "how": "so",
        "environment": environment,
        "check": {"verdict": verdict, "error": 0.0},
        "cpu": {"median": median, "least": median, "most": median},
        "wall": {"median": median, "least": median, "most": median},
        "sd": sd,
    }


def dense(job, of):
    """½ or 1 × mean tr(Jᵀ(diag p − p pᵀ)J) by the outputs' Jacobian, sample by sample."""
    total = 0.0
    for x in job.x.double():
        z, J = of(x)
        p = z.softmax(0)
        total += torch.trace(J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J).item()
    return total / len(job.x)


def test_the_oracle_is_the_trace_of_a_dense_gauss_newton_matrix(job):
    model = job.own().model.double()
    names = dict(model.named_parameters())

    def of(x):
        call = lambda p: torch.func.functional_call(model, p, x)  # noqa: E731
        J = torch.func.jacrev(call)(names)
        return call(names).detach(), torch.cat([j.flatten(1) for j in J.values()], 1)

    found = oracle.truth("GN trace", job)
    assert found.value == pytest.approx(dense(job, of), rel=1e-10)
    assert found.sem == 0


def test_the_oracle_of_R_is_half_the_trace_at_the_layers_inputs(job):
    model = job.own().model.double()
    first, second = model[0], model[2]

    def of(x):
        h = first(x).relu()
        J = torch.autograd.functional.jacobian(model, x)
        return second(h).detach(), torch.cat([J, second.weight.detach()], 1)

    assert oracle.truth("R", job).value == pytest.approx(dense(job, of) / 2, rel=1e-10)


@pytest.mark.parametrize(
    "method",
    [m for m in (*DITHER, *NAIVE) if m.exact and m.quantity in ("R", "GN trace")],
    ids=lambda m: f"{m.quantity}, {m.who}, {m.how}",  # the same in every worker
)
def test_every_exact_way_gives_the_oracles_number(method, job):
    said = oracle.check(method.build, job, True, oracle.truth(method.quantity, job))
    assert said["verdict"] == "same"


def test_a_method_works_on_a_model_of_its_own(job):
    before = [p.clone() for p in job.model.parameters()]
    for method in (*DITHER, *NAIVE):
        if method.claims(job.workload):
            method.build(job.own())()
    assert all(torch.equal(p, q) for p, q in zip(job.model.parameters(), before, strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in job.model.modules())


def test_another_number_is_said_to_be_another():
    true = oracle.Number(2.0)
    assert oracle.verdict(oracle.Number(2.0001), true)["verdict"] == "same"
    assert oracle.verdict(oracle.Number(1.0), true)["verdict"] == "another number: 1 instead of 2"
    assert oracle.verdict(oracle.Number(2.3, sem=0.1), true)["verdict"] == "same"
    assert oracle.verdict(oracle.Number(2.5, sem=0.1), true)["verdict"].startswith("another number")
    assert oracle.verdict(oracle.Number(float("nan")), true)["verdict"].endswith("not finite")


def test_calls_take_turns():
    told = []
    calls = {name: lambda name=name: told.append(name) or 1.0 for name in "AB"}
    clock_slot, clock.SLOT = clock.SLOT, 0.0
    try:
        _, found = clock.interleaved(lambda: told.append("plain"), calls, rounds=3)
    finally:
        clock.SLOT = clock_slot
    assert "".join(name[0] for name in told[6:]) == "pAB" * 3
    assert found["A"].values == [1.0] * 3


def test_the_peak_counts_what_is_held_at_once():
    def one_after_another():
        for _ in range(4):
            torch.ones(2**18)  # a megabyte each

    def together():
        return [torch.ones(2**18) for _ in range(4)] and None

    assert clock.peak(one_after_another) == pytest.approx(2**20, rel=0.01)
    assert clock.peak(together) == pytest.approx(2**22, rel=0.01)


def test_a_target_is_judged_by_dithers_own_run():
    rows = [
        row(median=2.6),
        row(median=9.0, environment="backpack"),
        row("BackPACK", median=5.0, environment="backpack"),
    ]
    judged = {j.what: j for j in targets.judge(rows)}
    assert judged["GN trace"].found == 2.6
    assert judged["GN trace"].mark == "✔"
    assert judged["GN trace, of BackPACK's"].found == pytest.approx(9 / 5)
    assert judged["GN trace, of BackPACK's"].mark == "✗"
    assert judged["R"].mark == "–"


def test_another_number_wins_nothing():
    wrong = row(median=0.1, verdict="another number: 1 instead of 2")
    assert targets.cost(wrong) is None
    assert {j.what: j for j in targets.judge([wrong])}["GN trace"].held is None


def test_the_price_of_one_standard_error_is_cost_times_variance():
    assert targets.price(row(median=3.0, sd=2.0), equal_error=True) == 12


def test_every_target_is_of_a_quantity_measured_there():
    claimed = {(m.quantity, name) for m in ALL for name, w in WORKLOADS.items() if m.claims(w)}
    claimed |= {("memory", name) for name, w in WORKLOADS.items() if "memory" in w.costs}
    assert set(targets.AT_MOST) <= claimed
    for a in targets.AGAINST:
        assert (a.quantity, a.workload) in claimed


def test_the_floor_is_a_third_of_the_columns():
    assert growth.floor(10) == pytest.approx(10 / 3)


def test_a_record_is_written_read_and_drawn(tmp_path):
    refused = {
        k: v
        for k, v in row("ASDL", environment="asdl").items()
        if k in ("workload", "quantity", "who", "how")
    }
    runs = {
        "mlp1024 dither": {"rows": [row(median=2.6)]},
        "mlp1024 asdl": {
            "rows": [row(environment="asdl"), {**refused, "environment": "asdl", "refuses": "no"}]
        },
    }
    made = record.gather(9, [], runs, {"growth": [], "seeds": []}, seconds=60.0)
    path = record.write(made, tmp_path)
    page = path.read_text(encoding="utf-8")
    assert "| mlp1024 | ASDL: so | – | – |  | refuses: no |" in page
    assert "beside asdl" not in page  # nothing to stand beside
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == made
    (drawn,) = figures.draw(made, tmp_path)
    assert "<svg" in drawn.read_text(encoding="utf-8")


def test_a_layers_input_is_not_what_a_shortcut_reads():
    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)

        def forward(self, x):
            h = self.first(x).tanh()
            return h + self.second(h)

    torch.manual_seed(0)
    net = Shortcut()
    work = Workload("tiny", "tiny", Shortcut, 5, ("R",), classes=3)
    job = Job(work, net, torch.randn(5, 4), torch.randint(3, (5,)))
    said = oracle.check(DITHER[0].build, job, True, oracle.truth("R", job))
    assert said["verdict"] == "same"


@pytest.mark.parametrize("quantity", ["R", "activations"])
def test_what_was_spent_adds_up_and_names_the_products(job, quantity, monkeypatch):
    monkeypatch.setattr(spent, "SHOWN", 1000)
    rows = spent.spent(job, quantity)
    *parts, whole = rows
    assert whole["what"] == "all"
    assert whole["plain"] == 1
    assert sum(r["here"] for r in parts) == pytest.approx(whole["here"])
    assert sum(r["plain"] for r in parts) == pytest.approx(1)
    above = [r["here"] - r["plain"] for r in parts]
    assert above == sorted(above, reverse=True)
    assert {"aten::mm", "aten::addmm"} <= {r["what"] for r in parts}
    assert f"| all | {whole['here']:.3f} | 1.000 |" in record._spent(rows)


def test_what_missed_its_own_target_is_looked_into_and_nothing_else():
    judged = targets.judge([row(median=9.0)])
    assert [j.what for j in judged if j.held is False and j.own] == ["GN trace"]
    beside = [row(environment="backpack"), row("BackPACK", environment="backpack", median=1.5)]
    missed = [j for j in targets.judge([row(median=0.1), *beside]) if j.held is False]
    assert [(j.what, j.own) for j in missed] == [("GN trace, of BackPACK's", False)]


def test_what_was_measured_is_kept_and_taken_up_when_asked(tmp_path):
    seen = []

    def measure(n):
        seen.append(n)
        return {"rows": [n]}

    assert _kept(tmp_path / "a", True, "cnn dither", measure, 1) == {"rows": [1]}
    assert _kept(tmp_path / "a", True, "cnn dither", measure, 2) == {"rows": [1]}
    assert _kept(tmp_path / "a", True, "cnn backpack", measure, 3) == {"rows": [3]}
    assert _kept(tmp_path / "a", False, "cnn dither", measure, 4) == {"rows": [4]}
    assert _kept(tmp_path / "b", True, "cnn dither", measure, 5) == {"rows": [5]}
    assert seen == [1, 3, 4, 5]


def test_the_script_for_an_accelerator_runs_on_a_cpu(monkeypatch, capsys):
    from benchmarks import gpu, nets

    small = {"MLP 784-1024³-10": (lambda: nets.mlp(784, 16, 10), (784,), 8)}
    monkeypatch.setattr(gpu, "NETS", small)
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--rounds", "1"])
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert said.count(" ok") == 6
    assert "DIFFERS" not in said
    monkeypatch.setattr(gpu, "NEAR", 0.0)
    assert gpu.main() == 1
