import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tasks import paper, plain
from typer.testing import CliRunner

from dither.lab.cli import app
from dither.lab.data import files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dither(tmp_path, monkeypatch):
    """dither("reproduce …") → (exit code, stdout, stderr) in a folder of its own, with figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    false = plain().replace("return bool(", "return not bool(").replace("T1", "T2")
    more = {
        "departures": ["smoke: short"],
        "cost": {"smoke": 0.1, "quick": 3},
        "quick": {"steps": 9},
    }
    paper(
        tmp_path / "papers",
        monkeypatch,
        fig1=plain(**more),
        fig2=false,
        fig3=plain(needs=("imagenet",), smoke={"steps": 7}, quick={"steps": 7}),
    )

    def dither(line):
        result = CliRunner().invoke(app, shlex.split(line), prog_name="dither")
        assert "Traceback" not in result.output
        return result.exit_code, result.stdout, result.stderr

    return dither


def sentence(outcome):
    """The one line on stderr of a call that could not be done."""
    code, _, err = outcome
    assert code == 1
    assert err.startswith("dither: ")
    assert err.count("\n") == 1
    return err.removeprefix("dither: ").strip()


def test_list(dither):
    code, out, err = dither("list")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "figure        claims    smoke    quick decisive    paper  needs",
        "toy2024/fig1       1      6 s    3 min        –        ?",
        "    Figure 1: a decay",
    ]
    assert (
        out.splitlines()[5]
        == "toy2024/fig3       1        ?        ?        –        ?  imagenet (missing)"
    )


def test_list_fits_80_columns(dither, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    paper(tmp_path / "more", monkeypatch, fig12=plain().replace("a decay", "a decay " * 12))
    assert max(map(len, dither("list")[1].splitlines())) <= 80


def test_a_broken_figure_is_listed_with_its_reason(dither, tmp_path, monkeypatch):
    paper(tmp_path / "more", monkeypatch, "bad2024", fig1="figure = 1 / 0", fig2=plain())
    code, out, _ = dither("list")
    assert code == 0
    assert "ZeroDivisionError" in out
    assert "bad2024/fig2" in out


def test_show(dither):
    dither("reproduce toy2024/fig1 --scale smoke --jobs 1")
    code, out, err = dither("show toy2024/fig1")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "Figure 1: a decay. Two rates, one faster." in words
    assert "smoke: 2 runs × 2 seeds, 4 of 4 there, about 6 s on one core (no settings)" in words
    assert "quick: 2 runs × 2 seeds, 0 of 4 there, about 3 min on one core (steps = 9)" in words
    assert "runs: rate 0.1 · rate 0.5" in words
    assert "claims, judged at scale smoke over 2 seeds: ✓ T1 holds: faster is lower" in words
    assert "slow: 0.67085 ± 0.00071 (sd of 2)" in words
    assert "departures from the paper: - smoke: short" in words


def test_show_before_anything_is_run(dither):
    words = " ".join(dither("show toy2024/fig2")[1].split())
    assert "claims, not judged yet: – T2: faster is lower" in words
    dither("reproduce toy2024 --scale smoke --jobs 1")
    words = " ".join(dither("show toy2024/fig3")[1].split())
    assert "claims, not run: data absent: data 'imagenet' is not here" in words
    assert "✗ T2 fails: faster is lower" in " ".join(dither("show toy2024/fig2")[1].split())


def test_show_a_paper(dither):
    code, out, err = dither("show toy2024")
    assert (code, err) == (0, "")
    assert out.startswith("Toy et al. 2024, On Nothing\n\nfigure ")
    assert "toy2024/fig2" in out


def test_show_what_a_scale_costs(dither):
    code, out, err = dither("show --scale quick --workers 2 --workers 3")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.strip()]
    cost = ["toy2024/fig1", "4", "3", "min", "45", "s"]  # two labels, two seeds, 3 minutes
    assert cost in rows
    assert ["all", *cost[1:]] not in rows  # two figures more
    left_out, _, two, three = (" ".join(row) for row in rows[-4:])
    assert left_out.startswith("without a cost, and left out below: ")
    assert two == "2 90 s 0% 90 s 0% 90 s (the work)"
    assert three == "3 90 s 33% 90 s 33% 90 s (two of the 4 longest)"
    assert dither("show toy2024/fig1 --scale quick")[1].count("min") > 1


def test_version(dither):
    assert dither("--version") == (0, "dither 0.1.0\n", "")


def test_reproduce(dither, tmp_path):
    code, out, err = dither("reproduce toy2024/fig1 toy2024/fig2 --scale smoke --jobs 1 --seeds 1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"The page: {tmp_path / 'results' / 'index.html'}"
    assert re.fullmatch(r"\[1/2\] toy2024/fig1 · rate 0\.1 · seed 0 · [\d.]+ s", lines[2])
    assert lines[-4:] == [
        "toy2024/fig2: 1 fails", "fails:", "  toy2024/fig2 T2: faster is lower", lines[0],
    ]  # fmt: skip
    assert "nothing to compute" in dither("reproduce */fig1 --scale smoke --jobs 1 --seeds 0:1")[1]


def test_whether_claims_hold_is_a_result_unless_strict(dither):
    line = "reproduce toy2024/fig2 --scale smoke --jobs 1"
    assert dither(line)[0] == 0
    code, _, err = dither(f"{line} --strict")
    assert (code, err) == (2, "dither: 1 claim failed (toy2024/fig2 T2), and --strict was given\n")
    assert dither("reproduce toy2024/fig1 --scale smoke --jobs 1 --strict")[0] == 0


def test_absent_data_is_told_and_fails_only_if_nothing_else_was_asked(dither):
    code, out, _ = dither("reproduce toy2024 --scale smoke --jobs 1")
    assert code == 0
    assert "toy2024/fig3: not run: data absent: data 'imagenet' is not here" in out
    assert sentence(dither("reproduce toy2024/fig3")).startswith(
        "nothing could be run: data absent"
    )


def test_failed_runs_are_told_at_the_end(dither, tmp_path, monkeypatch):
    faulty = plain(smoke={"function": "tasks:faulty", "how": "bug"})
    paper(tmp_path / "more", monkeypatch, "bad2024", fig1=faulty)
    outcome = dither("reproduce bad2024 --scale smoke --jobs 1")
    assert (
        sentence(outcome)
        == "2 runs failed (named above and on results/index.html); what is finished is kept"
    )
    log = "results/logs/bad2024_fig1_rate_0.5_seed_0.log"
    assert f"seed 0 · failed: ZeroDivisionError: a bug (traceback: {log})" in outcome[1]
    assert "in faulty" in (tmp_path / log).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("show toy2024/fig4", "no figure is called 'toy2024/fig4'; did you mean toy2024/fig"),
        ("reproduce --only 'rate 1' 'rate 2'", "no figure is called 'rate 2'; if it is a"),
        ("reproduce toy2042", "no figure is called 'toy2042'; did you mean toy2024"),
        ("reproduce --scale big", "scale 'big' is none of smoke, quick, decisive, paper"),
        ("reproduce --seeds 3:x", "--seeds 3:x: give a number (3) or a range (0:3)"),
        ("reproduce --seeds 0", "seeds = 0 is empty"),
        ("reproduce --seeds 3:1", "--seeds 3:1 is empty: give a number (3) or a range (0:3)"),
        ("reproduce --jobs 0", "jobs = 0: at least one process"),
        ("reproduce --jobs two", "invalid value for '--jobs'"),
        ("reproduce --scal smoke", "no such option: --scal"),
        ("reproduce --out", "option '--out' requires an argument; `dither reproduce --help` shows"),
        ("data fetch", "missing argument 'NAME'; `dither data fetch --help`"),
        ("reprodce", "no such command 'reprodce'. Did you mean 'reproduce'?"),
        ("show", "missing argument 'FIGURE'"),
        ("show --workers 3", "--workers tells how long a scale takes: give --scale, too"),
        ("show --scale best", "scale 'best' is none of smoke, quick, decisive, paper"),
        ("show toy2024 --scale decisive", "none of these figures has a decisive scale"),
        ("reproduce --cluster local --resources GPU", "--resources GPU: give a name and a number"),
        ("reproduce --cluster local --resources GPU=0", "--resources GPU=0: give a name and a"),
        ("show a b", "got unexpected extra argument"),
        ("report --out nowhere", "there are no figures in nowhere: run `dither"),
        ("data fetch cifar", "data 'cifar' is not here: dither has no"),
        ("reproduce toy2024/fig1 --out /proc/dither", "can't write results to /proc/dither"),
        ("reproduce toy2024/fig1 --scale smoke --cluster nowhere", "no Dask scheduler answers"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(dither, line, said):
    assert sentence(dither(line)).lower().startswith(said.lower())


def test_results_of_another_format(dither, tmp_path):
    line = "reproduce toy2024/fig1 --scale smoke --jobs 1"
    dither(line)
    for env in tmp_path.glob("results/runs/*/*/env.json"):
        env.write_text('{"format": 99, "dither": "9.9"}', encoding="utf-8")
        (env.parent / "sha256.json").unlink()  # else it is damage
    assert re.match(
        r"results/runs/\w+/0 was written in format 99 by dither 9.9", sentence(dither(line))
    )


def test_report(dither, tmp_path):
    dither("reproduce toy2024/fig1 --scale smoke --jobs 1")
    (tmp_path / "results" / "index.html").unlink()
    code, out, _ = dither("report")
    assert (code, out) == (0, f"The page: {tmp_path / 'results' / 'index.html'}\n")
    assert (tmp_path / "results" / "index.html").exists()


def test_data(dither, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "folders", lambda name: [tmp_path / "here", tmp_path / "there"])
    code, out, _ = dither("data")
    assert code == 0
    file = "train-images-idx3-ubyte.gz"
    assert re.search(rf"fashion-mnist: missing: put {file}, .* into {tmp_path}/here or ", out)
    (tmp_path / "there").mkdir()
    for file in files.SUMS["fashion-mnist"]:
        (tmp_path / "there" / file).touch()
    assert f"fashion-mnist: found {tmp_path / 'there'}\n" in dither("data")[1]
    assert dither("data fetch fashion-mnist")[1] == f"fashion-mnist: {tmp_path / 'there'}\n"


def test_no_command_shows_the_commands(dither):
    code, out, _ = dither("")
    assert code == 0
    assert all(command in out for command in ("list", "show", "reproduce", "report", "data"))


def test_python_m_dither():
    command = [sys.executable, "-m", "dither", "show", "nothing/at/all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("dither: no figure is called 'nothing/at/all'")
