"""`python -m benchmarks [--only cnn,mlp1024] [--peers backpack,none] [--rounds 9] [--resume]
[--part NAME]`: measure, record, draw.

The whole of it writes benchmarks/records/<date>.{md,json} and docs/{benchmarks,growth}.svg; a part
of it, or fewer than nine rounds, writes the same under `.bench/`. Each process' numbers are kept
under `.bench/parts/`, by the hash of the code: `--resume` goes on where the last call was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environments, figures, record
from benchmarks.environments import BENCH, ROOT, Environment
from benchmarks.targets import Judged, judge
from benchmarks.workloads import WORKLOADS, trained
from dither.lab.runs.store import write

GROWTH = "growth"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main() -> None:
    """Measure what was asked for; record and draw it."""
    args = _arguments()
    start = time.perf_counter()
    whole = not args.only and args.peers is None and args.rounds >= 9
    wanted = args.only or [*WORKLOADS, GROWTH]
    chosen = [p for p in environments.PACKAGES if args.peers is None or p in args.peers]
    peers = [_said(environments.ready(peer)) for peer in chosen]
    parts = BENCH / "parts" / f"{record.code_hash()}, {args.rounds} rounds"
    kept = partial(_kept, parts, args.resume)
    found: dict[str, dict[str, Any]] = {}
    extras: dict[str, Any] = {}
    here = Environment("dither", Path(sys.executable))
    for name in wanted:
        if name == GROWTH:
            extras = kept("growth", _growth, args.rounds)
            continue
        trained(WORKLOADS[name])
        for env in (here, *(e for e in peers if e.python and _useful(e.peer, name))):
            found[f"{name} {env.peer}"] = kept(
                f"{name} {env.peer}", _measured, env, name, args.rounds
            )
            made = record.gather(args.rounds, peers, found, extras, time.perf_counter() - start)
            record.write(made, BENCH / "last")  # what a run that is cut short leaves
    missed = [j for j in judge(record.rows_of({"runs": found})) if j.held is False]
    extras["spent"] = {f"{j.what} | {j.workload}": _spent(j) for j in missed if j.own}
    made = record.gather(args.rounds, peers, found, extras, time.perf_counter() - start)
    records = ROOT / "benchmarks" / "records"
    page = record.write(made, records if whole or args.part else BENCH / "last", args.part)
    drawn = figures.draw(made, ROOT / "docs" if whole else BENCH / "last")
    judged = judge(record.rows_of(made))
    held = sum(j.held is True for j in judged)
    targets = f"{held} of {len(judged)} targets held; " if judged else ""
    print(targets + "written: " + ", ".join(map(str, (page, *drawn))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure dither and its peers side by side."
    )
    parser.add_argument(
        "--only",
        type=_names((*WORKLOADS, GROWTH)),
        help="workloads, by commas: " + ", ".join(WORKLOADS),
    )
    parser.add_argument(
        "--peers",
        type=_names((*environments.PACKAGES, "none")),
        help="which, by commas, or none (default: all)",
    )
    parser.add_argument(
        "--part", default="", help="keep the record of a part as benchmarks/records/<date>-<PART>"
    )
    parser.add_argument("--resume", action="store_true", help="keep what this code has measured")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each method (default: 9)")
    return parser.parse_args()


def _names(known: tuple[str, ...]) -> Any:
    def parsed(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parsed


def _said(env: Environment) -> Environment:
    print(f"{env.peer} {env.version or 'is left out: ' + env.reason}", flush=True)
    return env


def _kept(
    folder: Path, resume: bool, name: str, measure: Callable[..., dict[str, Any]], *args: Any
) -> dict[str, Any]:
    """What was measured of that name before, or now, and then kept."""
    file = folder / f"{name}.json"
    if resume and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = measure(*args)
    folder.mkdir(parents=True, exist_ok=True)
    write(file, json.dumps(found))
    return found


def _growth(rounds: int) -> dict[str, Any]:
    return _worker(Path(sys.executable), "benchmarks.growth", str(rounds))


def _useful(peer: str, workload: str) -> bool:
    """Whether a peer claims a quantity that is measured there."""
    from benchmarks.peers import PEERS

    return any(m.claims(WORKLOADS[workload]) for m in PEERS[peer])


def _measured(env: Environment, workload: str, rounds: int) -> dict[str, Any]:
    start = time.perf_counter()
    assert env.python is not None
    found = _worker(env.python, "benchmarks.worker", env.peer, workload, str(rounds))
    if "died" in found:
        row = {
            "workload": workload,
            "quantity": record.DIED,
            "who": env.peer,
            "how": "",
            "environment": env.peer,
        }
        found = {"rows": [{**row, "refuses": found["died"]}]}
    print(f"{workload}, {env.peer}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def _spent(missed: Judged) -> list[dict[str, Any]]:
    """Where the time of a call that missed its target goes."""
    found = _worker(Path(sys.executable), "benchmarks.spent", missed.workload, missed.what)
    died = {"what": found.get("died"), "here": 0.0, "plain": 0.0, "calls": 0}
    return found.get("rows", [died])


def _worker(python: Path, module: str, *args: str) -> dict[str, Any]:
    """What a module prints last, as JSON; {"died": why} where it ended otherwise."""
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(python), "-m", module, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {"died": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
