"""A process that keeps what it frees has fewer pages to fetch."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    from dither.lab.runs.allocator import keep_freed
    keep_freed()

def step():
    kept = [torch.ones(2**24) for _ in range(2)]  # 64 MB each
    return sum(float(t[0]) for t in kept)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_fetched_once():
    assert faults("keep") < faults("as it is") / 4
