"""A slice of the fault driver: each fault and each kind of hostile file, a few times.

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
FAULTS = ("killed", "stopped", "disk full", "no permission", "deleted", "two at once", "clock")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="calls are forks")
@pytest.mark.parametrize(
    ("count", "kinds"),
    [(60, FILES), (7, FAULTS), (4, ("results",))],
    ids=["files", "faults", "folder"],
)
def test_the_laws_hold(count, kinds):
    command = [sys.executable, str(HERE / "run.py"), "--count", str(count), "--kinds", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert re.search(rf"^{count} cases, 0 against the law$", done.stdout, re.M), (
        done.stdout + done.stderr
    )
