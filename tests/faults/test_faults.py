"""A slice of the fault driver: a kill, a full disk, and each kind of hostile file.

`make faults ARGS="--count 2000 --seed 1"` tries many more. A process of its own forks the calls:
this one may hold threads already.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("batch", "digits", "idx", "archive", "mat", "labels")
FAULTS = ("killed", "disk full")
REST = ("stopped", "no permission", "results")
# A kill and the call after it take long on a busy machine.
kills = pytest.mark.skipif("DITHER_KILLS" not in os.environ, reason="make faults tries them")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="calls are forks")
@pytest.mark.parametrize(
    ("count", "kinds"),
    [(30, FILES), pytest.param(2, FAULTS, marks=kills), (3, REST)],
    ids=["files", "kills", "faults"],
)
def test_the_laws_hold(count, kinds):
    command = [sys.executable, str(HERE / "run.py"), "--count", str(count), "--kinds", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230)
    assert re.search(rf"^{count} cases, 0 against the law$", done.stdout, re.M), (
        done.stdout + done.stderr
    )
