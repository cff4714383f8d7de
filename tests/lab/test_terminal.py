"""stdout in any encoding, without a reader, on a full disk: what computes goes on."""

import io
import os
import sys

import pytest
from rich.console import Console

from dither.errors import DitherError
from dither.lab import terminal
from dither.lab.data import files, needs


@pytest.fixture
def streams(monkeypatch):
    """streams(stdout) → what stderr gets; both are steady."""

    def streams(stdout):
        told = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", told)
        terminal.steady()
        return told

    return streams


def writer(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(os.fdopen(number, "wb"), encoding="utf-8", write_through=True)


def without_reader() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return writer(write)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", "-1.5 +- 0.2 -> sigma \\u2603 \\udcff"),
        ("latin-1", "-1.5 ± 0.2 -> sigma \\u2603 \\udcff"),
        ("utf-8", "−1.5 ± 0.2 → σ ☃ \\udcff"),
    ],
)
def test_a_letter_that_an_encoding_lacks(streams, encoding, said):
    raw = io.BytesIO()
    streams(io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    print("−1.5 ± 0.2 → σ ☃ \udcff")
    assert terminal.told()
    assert raw.getvalue().decode(encoding) == said + "\n"


def test_a_closed_pipe_stops_nothing_and_is_told_where_something_computes(streams):
    told = streams(without_reader())
    terminal.works()
    for n in range(3):
        print(n)
        Console(file=sys.stdout).print(n)
    assert told.getvalue() == (
        "dither: stdout can't be written any more (Broken pipe): the work goes on, and what it "
        "says is dropped; stop it with Ctrl-C\n"
    )
    sys.stdout.close()


def test_a_list_ends_in_silence_when_its_reader_has_enough(streams):
    told = streams(without_reader())
    print("one")
    assert terminal.told()
    assert told.getvalue() == ""
    sys.stdout.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_told(streams):
    told = streams(writer(os.open("/dev/full", os.O_WRONLY)))
    print("one")
    assert not terminal.told()
    assert "(No space left on device): what is said from now on is dropped" in told.getvalue()
    sys.stdout.close()


def test_a_process_without_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.steady()
    assert terminal.told()


def test_a_user_without_a_home(monkeypatch, tmp_path):
    import pwd

    def nobody(number):
        raise KeyError(number)

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "DITHER_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "put usps.bz2" in needs.advice("usps")
    assert needs.absent("usps").startswith("not run: data absent")
    with pytest.raises(DitherError, match=r"no home to keep usps\.bz2 in: set DITHER_DATA"):
        files.fetch("usps", "usps.bz2")
    assert not list(tmp_path.iterdir())
