"""A dated record of a run: the numbers as JSON, a page of tables, and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, Environment
from benchmarks.targets import SEEDS_FASTER, Row, judge, same
from benchmarks.workloads import WORKLOADS
from dither.lab.runs import provenance

LABELS = {
    "R": "Exact R at all layer inputs",
    "R sampled": "Sampled R, one column",
    "GN trace": "Trace of the weights' Gauss–Newton matrix",
    "GN trace sampled": "The same, sampled: one column",
    "step + R": "Training step on loss + exact R",
    "step + R sampled": "Training step on loss + sampled R",
    "Hessian trace": "Trace of the Hessian",
    "GN diagonal": "Diagonal of the weights' Gauss–Newton matrix",
    "Hessian diagonal": "Diagonal of the Hessian",
    "largest eigenvalue": "Largest eigenvalue of the Hessian",
    "density": "Density of the Hessian's eigenvalues",
    "memory": "Peak memory of exact R",
    "weights": "Step with weight noise on all tensors, gaussian",
    "weights two-point": "The same, two-point",
    "weights cycle": "Step with weight noise on one tensor",
    "activations": "Step with activation noise at every layer input",
    "relative weights": "Step with noise relative to the largest weight",
    "DropConnect": "Step with DropConnect on all tensors",
    "NEFTune": "Step with NEFTune on the embedding",
    "drop path": "Step with stochastic depth on every residual branch",
    "locked dropout": "Step with dropout locked over positions",
    "spatial dropout": "Step with dropout of whole maps in front of each convolution",
    "masked": "Step with noise under a mask",
    "prediction spread": "Spread of predictions under noise, 20 draws",
    "certificate": "Certificate of smoothing, 20 and 200 draws",
}
DIED = "all"  # the quantity of a worker that ended without a word
READING = """\
Every cost is a multiple of one plain forward + backward on the same network, in the same process
and the same round: median (least–greatest) of CPU time, with wall time beside it. *dither, beside*
is dither in the peer's process, in the same turns. *Same number*: checked first, on a few samples,
against a float64 oracle; by relative error, or for estimates in standard errors (z). *sd*: of the
value of one call on the batch."""


def code_hash() -> str:
    """Of the engine's and the benchmark's sources: which code the numbers belong to."""
    files = sorted([*(ROOT / "dither").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def gather(
    rounds: int,
    peers: Iterable[Environment],
    runs: dict[str, dict[str, Any]],
    extras: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Everything of a run; runs: {"workload environment": what the worker printed}."""
    env = provenance.environment(seconds)
    env.pop("together")
    named = {e.peer: e.version or e.reason for e in peers}
    return {
        "rounds": rounds,
        "code": code_hash(),
        **env,
        "threads": 1,
        "peers": named,
        "runs": runs,
        **extras,
    }


def rows_of(record: dict[str, Any]) -> list[Row]:
    """All methods' rows."""
    return [row for run in record["runs"].values() for row in run["rows"]]


def write(record: dict[str, Any], folder: Path, part: str = "") -> Path:
    """<date>.json and <date>.md, or <date>-<part>."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.now(timezone.utc).date().isoformat()
    name = f"{date}-{part}" if part else date
    (folder / f"{name}.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    path = folder / f"{name}.md"
    path.write_text(page(record, date), encoding="utf-8")
    return path


def page(record: dict[str, Any], date: str) -> str:
    """The record as Markdown."""
    rows = rows_of(record)
    parts = [f"# Measured on {date}", _setting(record)]
    if judge(rows) or record.get("seeds"):
        parts += ["## Targets", _targets(rows, record.get("seeds", []))]
    for name, spent in record.get("spent", {}).items():
        quantity, workload = name.split(" | ")
        parts += [f"## Where the time goes: {LABELS[quantity].lower()}, {workload}", _spent(spent)]
    for quantity, label in LABELS.items():
        of_it = [r for r in rows if r["quantity"] == quantity and _shown(r, record)]
        if of_it:
            parts += [f"## {label}", _table(of_it)]
    died = [r for r in rows if r["quantity"] == DIED]
    if died:
        parts += ["## Ended before the end", _table(died)]
    if record.get("growth"):
        parts += ["## Growth of exact R", _growth(record["growth"])]
    return "\n\n".join(parts) + "\n"


def _setting(record: dict[str, Any]) -> str:
    peers = ", ".join(f"{name} {said}" for name, said in record["peers"].items()) or "none"
    where = (
        record["machine"],
        provenance.versions_line(record),
        f"code {record['code']}, commit {record['commit']}",
        f"one thread, {record['rounds']} rounds, {record['seconds'] / 60:.0f} minutes",
    )
    return "\n\n".join(("; ".join(where) + ".", f"Peers: {peers}.", READING))


def _targets(rows: list[Row], seeds: list[dict[str, Any]]) -> str:
    lines = ["| work | on | at most | measured | |", "|---|---|---|---|---|"]
    for j in judge(rows):
        found = "not measured" if j.found is None else f"{j.found:.3g}"
        lines.append(
            f"| {LABELS.get(j.what, j.what)} | {j.workload} | {j.target:.3g} | {found} | {j.mark} |"
        )
    for s in seeds:
        faster = s["faster"]["median"]
        mark = "✔" if faster >= SEEDS_FASTER else "✗"
        cells = ("ten seeds at once, " + s["how"], "2-64-64-1", f"≥ {SEEDS_FASTER:g} × faster")
        lines.append("| " + " | ".join((*cells, _spread(s["faster"]) + " ×", mark)) + " |")
    return "\n".join(lines)


def _spent(rows: list[dict[str, Any]]) -> str:
    """Operators whose own time is above the plain step's, in plain steps."""
    lines = ["| operator | here | in a plain step | calls |", "|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r['what']} | {r['here']:.3f} | {r['plain']:.3f} | {r['calls']} |")
    return "\n".join(lines)


def _shown(row: Row, record: dict[str, Any]) -> bool:
    """Dither beside a peer only where the peer gave something to stand beside."""
    if row["who"] != "dither" or row["environment"] == "dither":
        return True
    run = record["runs"][f"{row['workload']} {row['environment']}"]["rows"]
    return any(
        r["who"] != "dither" and r["quantity"] == row["quantity"] and "cpu" in r for r in run
    )


def _table(rows: list[Row]) -> str:
    lines = ["| on | by | cost | wall | sd | same number |", "|---|---|---|---|---|---|"]
    order = list(WORKLOADS)
    for row in sorted(rows, key=lambda r: order.index(r["workload"])):
        beside = (
            f", beside {row['environment']}"
            if row["who"] == "dither" and row["environment"] != "dither"
            else ""
        )
        who = f"{row['who']}{beside}: {row['how']}"
        cost, wall = ("–", "–")
        if "cpu" in row:
            cost, wall = _spread(row["cpu"]), f"{row['wall']['median']:.3g}"
        elif "ratio" in row:
            cost = f"{row['ratio']:.3g} ({row['bytes'] / 2**20:.0f} MiB)"
        sd = f"{row['sd']:.2g}" if row.get("sd") else ""
        lines.append(f"| {row['workload']} | {who} | {cost} | {wall} | {sd} | {_said(row)} |")
    return "\n".join(lines)


def _said(row: Row) -> str:
    if "refuses" in row:
        return f"refuses: {row['refuses']}".replace("|", "\\|")
    check = row.get("check")
    if check is None:
        return ""
    if not same(row):
        return check["verdict"]
    return f"✔ z {check['z']:.1f}" if "z" in check else f"✔ {check['error']:.0e}"


def _spread(s: dict[str, float]) -> str:
    return f"{s['median']:.3g} ({s['least']:.3g}–{s['most']:.3g})"


def _growth(rows: list[dict[str, Any]]) -> str:
    lines = ["| axis | n | exact R | sampled R | floor of exact R |", "|---|---|---|---|---|"]
    for r in rows:
        cells = (r["axis"], r["n"], _spread(r["R"]), _spread(r["R sampled"]), f"{r['floor']:.3g}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
