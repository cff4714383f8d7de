"""One case: a model, a noise and a loss; what the library says of them beside the oracle."""

import copy
import math
from dataclasses import dataclass

import torch
from dense import LOSSES, oracle, run, targets
from kinds import KINDS
from torch import nn

import dither
from dither.noise import dropout, gaussian, two_gaussian, two_point, uniform

LAWS = (gaussian, uniform, two_point, two_gaussian, dropout(0.3))
RIGHT, REFUSED, WRONG, FOREIGN = "right", "refused", "wrong", "foreign error"
CLOSE = {torch.float64: 1e-8, torch.float32: 2e-3}  # relative to the largest share
DRAWS, Z = 400, 5.5  # of Monte Carlo; two-sided chance of a false alarm 4e-8


@dataclass(frozen=True)
class Case:
    kind: str
    seed: int

    def build(self):
        """(model, x, y, loss, noises, dtype): a function of kind and seed alone."""
        torch.manual_seed(self.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            model, x = KINDS[self.kind]()
        finally:
            torch.set_default_dtype(before)
        model = model.double().eval()
        loss = list(LOSSES)[self.seed % len(LOSSES)]
        y = targets(loss, run(model, x).detach())
        dtype = torch.float32 if self.seed % 4 == 3 else torch.float64
        what = noises(model, self.kind in ("sequence_first", "last_valid_step"))
        return model, x, y, loss, what, dtype


def noises(model, sequence_first):
    """Some parameters and some activations, each with a law of its own."""
    sites = [name for name, _ in model.named_parameters()]
    sites += [
        f"{name}:{side}"
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and type(m) is nn.Linear and "." not in name
        for side in ("in", "out")
    ]
    chosen = [s for s in sites if torch.rand(()) < 0.5] or sites[:1]
    found = {}
    for site in chosen:
        law, sigma = LAWS[int(torch.randint(len(LAWS), ()))], float(torch.rand(())) + 0.05
        kinds = [dither.Additive, dither.Multiplicative]
        kinds += [dither.Node] * (site.endswith(":out") and not sequence_first)
        kind = kinds[int(torch.randint(len(kinds), ()))]
        found[site] = (kind if ":" in site else dither.Weight)(sigma, law)
    return found


def taken_in_turn(case, what):
    """How weights get their noise; `draw` is of cases whose sites are all parameters."""
    alone = all(":" not in site for site in what)
    return ("each", "cycle", "random")[case.seed // 3 % 3] if alone else "each"


def to(x, dtype):
    if isinstance(x, tuple):
        return tuple(to(part, dtype) for part in x)
    return x.to(dtype) if x.is_floating_point() else x


def judge(case, chance=True):
    """{what was asked: (verdict, detail)}. `chance`: also what is a mean of draws."""
    model, x, y, loss, what, dtype = case.build()
    model.plain = True
    mine = copy.deepcopy(model).to(dtype)
    mine.plain = False
    draw = taken_in_turn(case, what)
    try:
        noise = dither.inject(mine, what, seed=0, draw=draw)
    except dither.DitherError as e:
        return {"inject": (REFUSED, str(e))}
    nodes = {n.replace("/", "."): w.detach().double() for n, w in noise.nodes.items()}
    _, right = oracle(model, x, y, loss, what, nodes)
    part = 1 if draw == "each" else 1 / len(what)  # tensor by tensor
    right = {name: (part * R, part * full) for name, (R, full) in right.items()}
    shares = {name: R for name, (R, _) in right.items()}
    total = sum(shares.values())
    parameters = list(model.parameters())
    found = [None] * len(parameters)
    if isinstance(total, torch.Tensor) and total.requires_grad:
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    slopes = [torch.zeros_like(p) if g is None else g for p, g in pairs]
    full = sum(f for _, f in right.values())
    x, y = to(x, dtype), torch.as_tensor(to(y, dtype))
    verdicts = {}

    def ask(name, question, scale):
        try:
            off = question()
        except dither.DitherError as e:
            verdicts[name] = (REFUSED, str(e))
        except Exception as e:
            verdicts[name] = (FOREIGN, f"{type(e).__name__}: {e}")
        else:
            good = math.isfinite(off) and off <= CLOSE[dtype] * scale
            verdicts[name] = (RIGHT if good else WRONG, f"off by {off:.3g} of {scale:.3g}")

    total = float(torch.as_tensor(total).detach())
    size = max(total, 1e-12)

    def exact():
        found = dither.explicit(noise, x, y, loss)
        return max(abs(found.by_site[n].item() - float(r)) for n, r in shares.items())

    def slope():
        R, leaves = dither.explicit(noise, x, y, loss).R, list(mine.parameters())
        found = [None] * len(leaves)
        if R.requires_grad:
            found = torch.autograd.grad(R, leaves, allow_unused=True)
        pairs = zip(found, slopes, strict=True)
        return max(float(((0 if g is None else g.double()) - s).abs().max()) for g, s in pairs)

    def whole():
        found = dither.explicit(noise, x, y, loss, curvature="full").R.item()
        return abs(found - full)

    def sampled():
        """The mean of 64 draws, whose own spread is too small where a few draws are large: what
        looks wrong is decided by 4096 others.
        """
        for n in (64, 4096):
            with torch.no_grad():
                each = [dither.explicit(noise, x, y, loss, samples=1).R.item() for _ in range(n)]
            each = torch.tensor(each, dtype=torch.float64)
            off = max(abs(each.mean().item() - total) - Z * each.std().item() / n**0.5, 0)
            if off == 0:
                break
        return off

    def expected():
        """At small σ, where orders above the second are far below the error."""
        small = {n: type(w)(1e-3 * w.sigma, w.law) for n, w in what.items()}
        with dither.inject(mine, small, seed=0) as little, torch.no_grad():
            for name, w in little.nodes.items():
                w.copy_(noise.nodes[name])
            found = dither.expected(little, x, y, loss, draws=DRAWS, antithetic=True, seed=0)
        near = Z * found.sem + 1e-3 * size * 1e-6
        return max(abs(found.value - 1e-6 * full) - near, 0) * 1e6

    def trace():
        each = {n: dither.Weight(1.0) for n, _ in model.named_parameters()}
        again, *rest = case.build()[:4]
        again.plain = True
        _, by = oracle(again, rest[0], rest[1], rest[2], each)
        found = dither.measures.trace(mine, loss, (x, y), of="gauss_newton")
        wanted = 2 * sum(float(R) for R, _ in by.values())
        off = abs(found.value - wanted) / max(wanted, 1e-12)
        return max(off - (0 if found.exact else Z * found.sem / wanted), 0) * size

    ask("R", exact, size)
    ask("gradient", slope, max([float(s.abs().max()) for s in slopes] + [size]))
    ask("full", whole, max(abs(full), size))
    if chance:
        ask("sampled", sampled, size)
    if (
        chance and draw == "each" and dtype == torch.float64
    ):  # differences of 1e-6 of the loss are lost in float32
        ask("expected", expected, max(abs(full), size))
    ask("trace", trace, size)
    noise.remove()
    return verdicts
