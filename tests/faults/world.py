"""A temporary paper with two small figures, and `dither` as a child of this process.

A call is a fork: the modules are there already, so that it takes a fraction of a second. This
process must not compute with polars, whose threads a child lacks.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parent)]

import matplotlib.backends.backend_agg  # noqa: E402
import matplotlib.backends.backend_svg  # noqa: E402, F401
import PIL.Image  # noqa: E402, F401
import torch  # noqa: E402

import dither.papers  # noqa: E402
from dither.lab import catalogue, check, cli, compare, reproduce  # noqa: E402, F401
from dither.lab.data.sets import Data  # noqa: E402
from dither.lab.figure import Run, Silent  # noqa: E402
from dither.lab.nets.specs import MLP  # noqa: E402
from dither.lab.page import judge  # noqa: E402
from dither.lab.runs.store import FILES  # noqa: E402
from dither.lab.training import checkpoint, loop  # noqa: E402
from dither.lab.training.optimiser import SGD  # noqa: E402

STEPS = 300
FIGURE = '''"""Figure {n}: nets that learn a sum of sines, and a decay."""

from matplotlib.figure import Figure as Picture

import dither
from dither.lab.data.sets import Data
from dither.lab.figure import Claim, Figure, Run, Task
from dither.lab.nets.specs import MLP
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import Loss


def decay(seed, progress, rate):
    import time

    for t in range(5):
        time.sleep(0.01)
        progress.update(t + 1, 5)
        yield t, "loss/train", rate**t + seed


def runs(steps):
    net = MLP((1, {n} + 4, 1), activation="tanh")
    data, noise = Data("sinusoids", train=20), dither.Additive(0.1)
    common = dict(data=data, model=net, optimiser=SGD(0.05), loss="half_square", batch=None)
    run = Run(**common, steps=steps, noise=noise, watch=(Loss("train", every=10),))
    return {{"net": run, "decay": Task.of(f"{{__name__}}:decay", rate=0.{n})}}


def plot(table):
    picture = Picture(figsize=(2, 1))
    axes = picture.subplots()
    for label in table.there:
        steps, values = table.series(label, "loss/train")
        axes.plot(steps, values.mean(0), label=label)
    return picture


def falls(table):
    last, first = (getattr(table, end)("decay", "loss/train") for end in ("last", "first"))
    table.last("net", "loss/train")
    return bool((last < first).all()), {{"last": last}}


figure = Figure(runs, plot, smoke={{"steps": {steps}}}, claims=[Claim("T{n}", "it falls", falls)],
    seeds={{"smoke": 2}})
'''
MAIN = """import dither.papers

dither.papers.__path__[:] = [{folder!r}]
dither.papers.__spec__.submodule_search_locations = [{folder!r}]
"""  # what a worker runs first


def load() -> None:
    """Train a net and draw a picture, so that whatever that imports is there. No polars."""
    from matplotlib.figure import Figure

    run = Run(
        data=Data("sinusoids", train=4), model=MLP((1, 2, 1), activation="tanh"), batch=None,
        optimiser=SGD(0.1), loss="half_square", steps=1, noise=dither.Additive(0.1),
    )  # fmt: skip
    loop.train(run, (0, 1), Silent())
    picture = Figure(figsize=(1, 1))
    picture.subplots().plot([0, 1], label="a")
    for kind in ("svg", "png"):
        judge._saved(picture, kind)


def package(folder: Path) -> None:
    """Make dither.papers of the folder, with one paper of two figures."""
    home = folder / "toy2024"
    home.mkdir(parents=True, exist_ok=True)
    (home / "__init__.py").write_text('"""Toy et al. 2024, On Nothing"""\n', encoding="utf-8")
    for n in (1, 2):
        (home / f"fig{n}.py").write_text(FIGURE.format(n=n, steps=STEPS), encoding="utf-8")
    (folder / "main.py").write_text(MAIN.format(folder=str(folder)), encoding="utf-8")
    dither.papers.__path__[:] = [str(folder)]
    assert dither.papers.__spec__ is not None
    dither.papers.__spec__.submodule_search_locations = [str(folder)]
    importlib.invalidate_caches()


@dataclass
class Ended:
    """How a call ended. code: below 0, the signal that killed it; None, it was stopped after a
    time.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def foreign(self) -> str:
        """What on stderr is no sentence of dither; "" if all are."""
        if "Traceback" in self.out + self.err:
            return (self.out + self.err)[-1500:]
        ours = ("dither: ", "Downloading ")
        return "\n".join(line for line in self.err.splitlines() if not line.startswith(ours))


class Call:
    """A running `dither`, in a group of its own."""

    def __init__(
        self, home: Path, *words: object, inside: Callable[[], object] | None = None
    ) -> None:
        self.files = [home / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self.begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(list(map(os.fspath, words)), inside)  # type: ignore[arg-type]

    def _child(self, words: list[str], inside: Callable[[], object] | None) -> None:
        code = 70
        try:
            os.setsid()
            for file, number in zip(self.files, (1, 2), strict=True):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
                signal.signal(getattr(signal, name), default)
            torch.set_num_threads(1)
            checkpoint.EVERY = 0.02
            sys.argv = ["dither", *words]
            main = sys.modules["__main__"]  # of the workers, too
            main.__file__, main.__spec__ = f"{dither.papers.__path__[0]}/main.py", None
            if inside:
                inside()
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:  # a fork ends here, whatever was raised
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)

    def running(self) -> bool:
        found, status = os.waitpid(self.pid, os.WNOHANG)
        if found:
            self.status = status
        return not found

    def end(self, limit: float = 120) -> Ended:
        """Wait for it, and end it with its workers after a time."""
        late = False
        while not hasattr(self, "status") and self.running():
            if time.monotonic() - self.begun > limit and not late:
                late = True
                self.kill(group=True)
            time.sleep(0.005)
        seconds = time.monotonic() - self.begun
        out, err = (f.read_text("utf-8", "replace") if f.exists() else "" for f in self.files)
        for file in self.files:
            file.unlink(missing_ok=True)
        code = None if late else os.waitstatus_to_exitcode(self.status)
        return Ended(code, out, err, seconds)

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def workers(self) -> list[int]:
        """The workers of a call with several processes."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            spawned = (pid for pid in children if b"spawn_main" in cmdline(pid))
            return [int(pid) for pid in spawned]
        return []


def cmdline(pid: str | int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether these workers end by themselves in time."""
    end = time.monotonic() + seconds
    while any(b"spawn_main" in cmdline(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def results(out: Path) -> dict[str, bytes]:
    """{key/seed: the bytes of its rows} of the results that are whole."""
    found = {}
    for folder in out.glob("runs/*/[0-9]*"):
        with contextlib.suppress(OSError):
            if all((folder / file).is_file() for file in FILES):
                found["/".join(folder.parts[-2:])] = (folder / "rows.parquet").read_bytes()
    return found


def verdicts(out: Path) -> dict[str, object]:
    """{figure: the verdicts of its claims}."""
    import json

    found: dict[str, object] = {}
    for path in sorted(out.glob("figures/*/*/claims.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            held = json.loads(path.read_text(encoding="utf-8"))
            found[path.parent.name] = [claim["holds"] for claim in held]
    return found


def unprivileged() -> None:
    """Let a file's mode hold for root, too: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    if libc.capget(header, held) == 0:
        held[0] &= ~0b110
        held[1] &= ~0b110
        libc.capset(header, held)


def memory(extra: int) -> None:
    """At most so many bytes more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
