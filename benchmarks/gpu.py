"""One accelerator in a few minutes: is every number right there, and what does it cost?

    python -m benchmarks.gpu                  # CUDA, or what torch calls its accelerator
    python -m benchmarks.gpu --device cpu --rounds 3

It needs no data and no peer. Oracles: R, traces and E[Δℓ] in float32 on the device against float64
on the CPU; a training step that waits for nothing; noise under autocast and in CUDA graphs. Rows:
multiples of a plain step, interleaved, medians, with peak memory. Exit code 1 if an oracle
disagrees.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dither
from benchmarks import nets
from dither.measures.curvature import trace
from dither.text import grid

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-1024³-10": (lambda: nets.mlp(784, *[1024] * 3, 10), (784,), 512),
    "CNN 32-64-128-128": (lambda: nets.cnn(32, 64, 128, 128), (3, 32, 32), 256),
    "ResNet18": (nets.resnet18, (3, 32, 32), 64),
}
NEAR = 2e-3  # relative, of float32 sums
Step = Callable[[], object]


def problem(
    name: str, device: torch.device, n: int | None = None
) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in eval mode with a batch."""
    make, shape, batch = NETS[name]
    torch.manual_seed(0)
    model, n = make().eval(), n or batch
    x, y = torch.randn(n, *shape), torch.arange(n) % 10
    return model.to(device), x.to(device), y.to(device)


def oracles(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """(what, here in float32, on the CPU in float64)."""
    for name in NETS:
        model, x, y = problem(name, device, 8)
        wide = copy.deepcopy(model).cpu().double()
        at = ((model, x, y), (wide, x.cpu().double(), y.cpu()))
        for label, noise in (
            ("activations", dither.Additive(0.1)),
            ("weights", dither.Weight(0.01)),
        ):
            found: list[float] = []
            for m, a, b in at:
                with dither.inject(m, noise, seed=0) as injected, torch.no_grad():
                    found.append(float(dither.explicit(injected, a, b).R))
            yield f"{name}: R, {label}", found[0], found[1]
        found = [trace(m, "cross_entropy", (a, b), of="gauss_newton").value for m, a, b in at]
        yield f"{name}: trace of GN", found[0], found[1]


def quiet_steps(device: torch.device) -> Iterator[tuple[str, str]]:
    """(what, "ok" or what went wrong): no waiting, autocast, CUDA graphs."""
    noises = {
        "additive": dither.Additive(0.1),
        "dropout": dither.Multiplicative(law=dither.dropout(0.1)),
        "weights": dither.Weight(0.01),
    }
    for label, noise in noises.items():
        model, x, y = problem("MLP 784-1024³-10", device, 64)
        with dither.inject(model.train(), noise, seed=0):
            step = stepping(model, x, y)
            step()
            yield f"{label}: waits for nothing", _waits(step, device)
            with torch.autocast(device.type, torch.bfloat16):
                finite = bool(torch.isfinite(model(x)).all())
            yield f"{label}: autocast bf16", "ok" if finite else "outputs are not finite"
            if device.type == "cuda":
                yield f"{label}: CUDA graph", _captured(model, x)


def _waits(step: Step, device: torch.device) -> str:
    if device.type != "cuda":
        return "not asked on this device"
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "ok"


def _captured(model: nn.Module, x: Tensor) -> str:
    """Draws need generators that a graph knows: today a capture is refused or works as it is."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            model(x)
        graph.replay()
        torch.cuda.synchronize()
    except (RuntimeError, dither.DitherError) as error:
        return f"not captured: {str(error).splitlines()[0]}"
    return "ok"


def stepping(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """A forward and backward."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    return step


def rows(name: str, device: torch.device, rounds: int) -> list[tuple[str, str, str]]:
    """(method, multiples of a plain step, peak memory) for one net."""
    calls: dict[str, Step] = {"plain step": stepping(*problem(name, device))}
    for label, noise in (
        ("noise on activations", dither.Additive(0.1)),
        ("noise on weights", dither.Weight(0.01)),
        ("noise on weights, two-point", dither.Weight(0.01, dither.two_point)),
    ):
        model, x, y = problem(name, device)
        dither.inject(model, noise, seed=0, when="always")
        calls[label] = stepping(model, x, y)
    for label, samples in (("R", None), ("R sampled", 1)):
        model, x, y = problem(name, device)
        injected = dither.inject(model, dither.Additive(0.1), seed=0)
        calls[label] = _valued(injected, x, y, samples)
    model, x, y = problem(name, device)
    calls["step + R sampled"] = _penalised(dither.inject(model, dither.Additive(0.1)), x, y)
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    peak = {label: 0.0 for label in calls}
    for turn in range(rounds + 2):  # two to warm up
        for label, call in calls.items():
            took, memory = _timed(call, device)
            if turn >= 2:
                seconds[label].append(took)
                peak[label] = max(peak[label], memory)
    plain = seconds["plain step"]
    return [
        (
            label,
            f"{statistics.median(a / b for a, b in zip(taken, plain, strict=True)):.2f}",
            f"{peak[label]:.0f} MB" if peak[label] else "–",
        )
        for label, taken in seconds.items()
    ]


def _valued(injected: dither.Injection, x: Tensor, y: Tensor, samples: int | None) -> Step:
    def call() -> None:
        with torch.no_grad():
            dither.explicit(injected, x, y, samples=samples)

    return call


def _penalised(injected: dither.Injection, x: Tensor, y: Tensor) -> Step:
    def call() -> None:
        injected.model.zero_grad(set_to_none=True)
        loss, R, _ = dither.explicit(injected, x, y, samples=1)
        (loss + R).backward()

    return call


def _timed(call: Step, device: torch.device) -> tuple[float, float]:
    """(seconds, peak MB of the device's allocator)."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return took, torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0


def main() -> int:
    """Ask the oracles and print the rows."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ask.add_argument("--rounds", type=int, default=15)
    ask.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    said = ask.parse_args()
    device = torch.device(said.device)
    named = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{named}, torch {torch.__version__}, dither {dither.__version__}\n")
    bad, table = 0, [("oracle", "here", "float64 on the CPU", "")]
    for what, here, there in oracles(device):
        right = abs(here - there) <= NEAR * abs(there)
        bad += not right
        table.append((what, f"{here:.6g}", f"{there:.6g}", "ok" if right else "DIFFERS"))
    print("\n".join(grid(table)), "\n")
    print("\n".join(grid([("step", ""), *quiet_steps(device)])), "\n")
    for name in said.nets:
        head = (f"{name}, B {NETS[name][2]}", "plain steps", "peak memory")
        print("\n".join(grid([head, *rows(name, device, said.rounds)])), "\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
