"""Where a result comes from: versions, machine, commit, seconds. No torch here."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("dither", "torch", "numpy", "scipy")


def environment(seconds: float, together: int = 1) -> dict[str, Any]:
    """The environment of a result. seconds: the time of a program with `together` seeds."""
    torch = sys.modules.get("torch")
    return {
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
        "threads": torch.get_num_threads() if torch else 1,
        "seconds": round(seconds / together, 3),
        "together": together,
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions_line(env: dict[str, Any]) -> str:
    """The versions of an environment: "dither 0.1.0, torch 2.13.0, Python 3.11.7"."""
    named = {"dither": env.get("dither"), "torch": env.get("torch"), "Python": env.get("python")}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value)


@cache
def version(package: str) -> str | None:
    """The version of an installed package, without an import; None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def machine() -> str:
    """This machine: "AMD EPYC 7B13, 2 cores, Linux"."""
    return f"{_processor()}, {cores()} core{'s' * (cores() > 1)}, {platform.system()}"


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """The commit of the checkout from which dither runs, with "+" after changes; None for an
    installed package.
    """
    here = Path(__file__).resolve().parents[2]  # the package
    if not (here.parent / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head[:12] + "+" * bool(_git(here, "status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()
