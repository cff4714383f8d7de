"""`dither check`: what is damaged is found, named, and computed again; nothing else is."""

import json
import random
import shutil

import pytest
from tasks import counting, plain
from typer.testing import CliRunner

from dither.lab import check
from dither.lab.cli import app
from dither.lab.runs.store import FILES, SUMS, Store

FLIPS = 60


@pytest.fixture
def results(toy, tmp_path):
    """A figure's four results; what was computed; the store."""
    more, noted = counting(tmp_path)
    toy(fig1=plain(smoke=more))()
    return Store(tmp_path / "results"), noted


def folders(store):
    return sorted(folder for folder in store.root.glob("runs/*/*") if folder.is_dir())


def contents(store):
    return {f: {p.name: p.read_bytes() for p in f.iterdir()} for f in folders(store)}


def test_what_was_sealed_is_whole(results):
    found = check.check(results[0])
    assert (found.whole, found.unsealed, found.damaged) == (4, 0, {})
    assert str(found) == "4 results are whole; 0 damaged"


@pytest.mark.parametrize("file", [*FILES, SUMS])
def test_every_flipped_bit_is_found_and_named(results, file):
    store, lots = results[0], random.Random(0)
    folder = folders(store)[1]
    payload = (folder / file).read_bytes()
    for _ in range(FLIPS):
        changed, bit = bytearray(payload), lots.randrange(8 * len(payload))
        changed[bit // 8] ^= 1 << bit % 8
        (folder / file).write_bytes(changed)
        assert list(check.check(store).damaged) == [folder]


DAMAGE = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "no fields": b"{}",
    "text": b"not a result",
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence_also_without_checksums(results, damage, file, sealed):
    store, _ = results
    folder = folders(store)[2]
    (folder / file).write_bytes(damage)
    if not sealed:
        (folder / SUMS).unlink()
    ((where, sentence),) = check.check(store).damaged.items()
    assert where == folder
    assert "\n" not in sentence.strip()


def test_older_results_are_read_and_counted(results):
    store, _ = results
    for folder in folders(store)[:3]:
        (folder / SUMS).unlink()
    found = check.check(store)
    assert (found.whole, found.unsealed, found.damaged) == (4, 3, {})
    assert "of which 3 can be read but have no checksum" in str(found)


def test_a_result_in_another_ones_place_is_found(results):
    store, _ = results
    a, b = folders(store)[:2]
    shutil.rmtree(b)
    shutil.copytree(a, b)
    assert list(check.check(store).damaged) == [b]


def test_repair_computes_what_is_damaged_and_nothing_else(results):
    store, noted = results
    before, calls = contents(store), noted()
    a, _, b, _ = folders(store)
    (a / "rows.parquet").write_bytes(b"PAR1 no")
    (b / "run.json").unlink()
    assert check.repair(store, check.check(store).damaged) == []
    assert len(noted()) == len(calls) + 2
    after = contents(store)
    assert not check.check(store).damaged
    for folder, held in before.items():
        assert after[folder]["rows.parquet"] == held["rows.parquet"]
        assert after[folder] == held or folder in (a, b)


def test_a_run_that_no_figure_has_is_told(results):
    store, _ = results
    stranger = store.root / "runs" / "0123456789abcdef" / "0"
    shutil.copytree(folders(store)[0], stranger)
    (sentence,) = check.repair(store, check.check(store).damaged)
    assert sentence == f"{stranger}: no figure has this run; delete the folder"
    assert stranger.is_dir()


def test_the_command(results):
    store, _ = results

    def dither(*words):
        done = CliRunner().invoke(app, ["check", *words], prog_name="dither")
        assert "Traceback" not in done.output
        return done.exit_code, done.stdout, done.stderr

    root = str(store.root)
    assert dither(root)[:2] == (0, "4 results are whole; 0 damaged\n")
    path = folders(store)[0] / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = dither(root)
    assert (code, err) == (
        1,
        f"dither: 1 damaged: `dither check {root} --repair` computes them again\n",
    )
    assert f"{path} can't be read (it is not what was sealed)" in out
    code, out, err = dither(root, "--repair")
    assert (code, err) == (0, "")
    assert out.endswith("now 4 results are whole; 0 damaged\n")
    code, _, err = dither(root + "/nowhere")
    assert (code, err[:27]) == (1, "dither: there are no result")


def test_damage_stops_no_other_figure(toy, tmp_path):
    reproduce = toy(fig1=plain(smoke={"steps": 3}), fig2=plain(smoke={"steps": 4}))
    study = reproduce().figures["toy2024/fig1"]
    folder = Store(tmp_path / "results").folder(study.runs["rate 0.1"], 0)
    (folder / "env.json").write_text(json.dumps([]))
    results = reproduce()
    assert results.figures["toy2024/fig2"].claims[0]["holds"] is True
    assert "dither check" in json.dumps(results.figures["toy2024/fig1"].claims)
