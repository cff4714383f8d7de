"""How each peer computes a quantity of `benchmarks.methods`, as its own documentation has it.
Imported in its environment only.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clock import Call
from benchmarks.methods import (
    DENSITY,
    DIAGONAL,
    GN_DIAGONAL,
    LARGEST,
    PROBES,
    RUNS,
    STEPS,
    TOLERANCE,
    Method,
    spread,
)
from benchmarks.naive import SMALL
from benchmarks.workloads import Job

# ----------------------------------------------------------------------------------------- BackPACK


def _backpack(
    extension: Callable[[], Any], attribute: str, *, each: bool = False
) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        from backpack import backpack, extend

        u = spread(job)
        branching = job.workload.name.startswith("resnet")
        model = extend(job.model, use_converter=branching).eval()
        loss = extend(nn.CrossEntropyLoss())

        def call() -> float:
            for p in model.parameters():
                p.grad = None
            with backpack(extension()):
                loss(model(job.x), job.y).backward()
            found = [getattr(p, attribute) for p in model.parameters()]
            if each:
                return sum((d * w).sum().item() for d, w in zip(found, u, strict=True))
            return sum(d.sum().item() for d in found)

        return call

    return build


def _diagonal(**options: int) -> Callable[[], Any]:
    def extension() -> Any:
        from backpack.extensions import DiagGGNExact, DiagGGNMC

        return DiagGGNMC(**options) if options else DiagGGNExact()

    return extension


# --------------------------------------------------------------------------------------- curvlinops


def _curvlinops(kind: str, number: Callable[[Any, Job], float]) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        import curvlinops

        parameters = [p for p in job.model.parameters() if p.requires_grad]
        operator = getattr(curvlinops, kind)

        def call() -> float:
            A = operator(
                job.model,
                nn.CrossEntropyLoss(),
                parameters,
                [(job.x, job.y)],
                check_deterministic=False,
            )
            return number(A, job)

        return call

    return build


def _hutchinson(A: Any, job: Job) -> float:
    import curvlinops

    return float(curvlinops.hutchinson_trace(A, num_matvecs=PROBES))


def _hutchinson_diagonal(A: Any, job: Job) -> float:
    import curvlinops

    u = torch.cat([w.flatten() for w in spread(job)])
    return float(curvlinops.hutchinson_diag(A, num_matvecs=PROBES) @ u)


def _arpack(A: Any, job: Job) -> float:
    """As its documentation has it: scipy's eigsh on the operator."""
    from scipy.sparse.linalg import eigsh

    found = eigsh(A.to_scipy(), k=1, which="LA", tol=TOLERANCE, return_eigenvectors=False)
    return float(found[0])


def _papyan(A: Any, job: Job) -> float:
    from curvlinops.papyan2020traces.spectrum import LanczosApproximateSpectrumCached

    spectrum = LanczosApproximateSpectrumCached(A, STEPS)
    spectrum.approximate_spectrum(num_repeats=RUNS)
    moments = [v[0].square() @ theta.square() for theta, v in spectrum._get_lanczos_iters(RUNS)]
    return float(sum(moments)) / RUNS


# --------------------------------------------------------------------------------------------- ASDL


def _asdl(kind: str) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        from asdl import matrices
        from asdl.fisher import FisherConfig, get_fisher_maker
        from asdl.grad_maker import LOSS_CROSS_ENTROPY

        model = job.model
        config = FisherConfig(
            fisher_type=getattr(matrices, kind),
            loss_type=LOSS_CROSS_ENTROPY,
            fisher_shapes=[matrices.SHAPE_DIAG],
            data_size=len(job.y),
        )

        def call() -> float:
            maker = get_fisher_maker(model, config)
            output = maker.setup_model_call(model, job.x)
            maker.setup_loss_call(F.cross_entropy, output, job.y)
            maker.forward_and_backward()
            return sum(_diagonals(module) for module in model.modules())

        return call

    return build


def _diagonals(module: nn.Module) -> float:
    fisher = getattr(module, "fisher", None)
    if fisher is None or fisher.diag is None:
        return 0.0
    return sum(t.sum().item() for t in (fisher.diag.weight, fisher.diag.bias) if t is not None)


# ------------------------------------------------------------------- PyHessian, hessian-eigenthings


def _pyhessian(job: Job) -> Call:
    from pyhessian import hessian

    model = job.model

    def call() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's word on create_graph=True
            found = hessian(model, nn.CrossEntropyLoss(), data=(job.x, job.y), cuda=False).trace(
                PROBES, tol=-1e30
            )
        for p in model.parameters():
            p.grad = None
        return sum(found) / len(found)

    return call


def _eigenthings(kind: str) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        import hessian_eigenthings as he

        criterion, data, seed = nn.CrossEntropyLoss(), [(job.x, job.y)], itertools.count()

        def call() -> float:
            if kind != "GGN":
                A = he.HessianOperator(job.model, data, he.supervised_loss(criterion))
            else:
                outputs = he.supervised_loss_of_output(criterion)
                A = he.GGNOperator(job.model, data, he.supervised_forward, outputs)
            if kind == LARGEST:
                found = he.lanczos(
                    A, k=1, max_iter=MOST, tol=TOLERANCE, which="LA", seed=next(seed)
                )
                return float(found.eigenvalues[0])
            if kind == DENSITY:
                how = {"num_runs": RUNS, "lanczos_steps": STEPS, "num_grid_points": 1000}
                found = he.spectral_density(A, seed=RUNS * next(seed), **how)
                return float((found.raw_weights * found.raw_eigenvalues.square()).nansum()) / RUNS
            return he.trace(A, num_matvecs=PROBES, method="hutchinson", seed=next(seed)).estimate

        return call

    return build


# ---------------------------------------------------------------------------- laplace-torch, opacus


def _laplace(backend: str, **options: Any) -> Callable[[Job], Call]:
    """The trace of DiagLaplace's Hessian: a sum over the data."""

    def build(job: Job) -> Call:
        from laplace import DiagLaplace
        from laplace.curvature import asdl as backends_asdl
        from laplace.curvature import backpack as backends_backpack
        from torch.utils.data import DataLoader, TensorDataset

        loader = DataLoader(TensorDataset(job.x, job.y), batch_size=len(job.y))
        found = getattr(backends_asdl, backend, None) or getattr(backends_backpack, backend)

        def call() -> float:
            la = DiagLaplace(job.model, "classification", backend=found, backend_kwargs=options)
            la.fit(loader)
            return la.H.sum().item() / len(job.y)

        return call

    return build


def _opacus(samples: int | None, ghost: bool) -> Callable[[Job], Call]:
    """Opacus' per-sample gradient norms, given the columns √p_c (e_c − p), or one with random signs
    over them.
    """

    def build(job: Job) -> Call:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

        kind = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
        bare = copy.deepcopy(job.model)
        model = kind(job.model.train(), loss_reduction="sum")
        for module in model.modules():
            module.training = module is model or not isinstance(module, nn.BatchNorm2d)

        def norms(column: Tensor) -> float:
            model.zero_grad()
            model(job.x).backward(column)
            if ghost:
                return sum(p._norm_sample.square().sum().item() for p in model.parameters())
            return sum(p.grad_sample.square().sum().item() for p in model.parameters())

        def call() -> float:
            with torch.no_grad():
                p = bare(job.x).softmax(-1)
            c = p.shape[1]
            root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)  # [B, C, C]
            if samples is None:
                columns = root.unbind(2)
            else:
                signs = torch.randint(0, 2, (len(p), c, samples)) * 2.0 - 1
                columns = (root @ signs / samples**0.5).unbind(2)
            return sum(map(norms, columns)) / len(p)

        return call

    return build


HESSIAN = "Hessian trace"
MOST = 40  # products of hessian-eigenthings for an eigenvalue: it takes all that it is given
PEERS: dict[str, tuple[Method, ...]] = {
    "backpack": (
        Method("GN trace", "BackPACK", "DiagGGNExact", _backpack(_diagonal(), "diag_ggn_exact")),
        Method(
            GN_DIAGONAL,
            "BackPACK",
            "DiagGGNExact",
            _backpack(_diagonal(), "diag_ggn_exact", each=True),
        ),
        Method(
            "GN trace sampled",
            "BackPACK",
            "DiagGGNMC, 1 sample",
            _backpack(_diagonal(mc_samples=1), "diag_ggn_mc"),
            exact=False,
        ),
    ),
    "curvlinops": (
        Method(
            "GN trace",
            "curvlinops",
            "10 probes",
            _curvlinops("GGNLinearOperator", _hutchinson),
            exact=False,
        ),
        Method(
            HESSIAN,
            "curvlinops",
            "10 probes",
            _curvlinops("HessianLinearOperator", _hutchinson),
            exact=False,
        ),
        Method(
            GN_DIAGONAL,
            "curvlinops",
            "hutchinson_diag, 10 probes",
            _curvlinops("GGNLinearOperator", _hutchinson_diagonal),
            exact=False,
        ),
        Method(
            DIAGONAL,
            "curvlinops",
            "hutchinson_diag, 10 probes",
            _curvlinops("HessianLinearOperator", _hutchinson_diagonal),
            exact=False,
        ),
        Method(
            LARGEST, "curvlinops", "scipy's eigsh", _curvlinops("HessianLinearOperator", _arpack)
        ),
        Method(
            DENSITY,
            "curvlinops",
            f"spectrum, {RUNS} × {STEPS} products",
            _curvlinops("HessianLinearOperator", _papyan),
            exact=False,
        ),
    ),
    "asdl": (
        Method("GN trace", "ASDL", "exact diagonal Fisher", _asdl("FISHER_EXACT")),
        Method(
            "GN trace sampled", "ASDL", "diagonal Fisher, 1 sample", _asdl("FISHER_MC"), exact=False
        ),
    ),
    "pyhessian": (
        Method(HESSIAN, "PyHessian", "10 probes, no early stop", _pyhessian, exact=False),
    ),
    "hessian-eigenthings": (
        Method("GN trace", "hessian-eigenthings", "10 probes", _eigenthings("GGN"), exact=False),
        Method(HESSIAN, "hessian-eigenthings", "10 probes", _eigenthings("Hessian"), exact=False),
        Method(LARGEST, "hessian-eigenthings", f"lanczos, {MOST} products", _eigenthings(LARGEST)),
        Method(
            DENSITY,
            "hessian-eigenthings",
            f"spectral_density, {RUNS} × {STEPS} products",
            _eigenthings(DENSITY),
            exact=False,
        ),
    ),
    "laplace": (
        Method("GN trace", "laplace-torch", "DiagLaplace, BackPackGGN", _laplace("BackPackGGN")),
        Method("GN trace", "laplace-torch", "DiagLaplace, AsdlGGN", _laplace("AsdlGGN")),
    ),
    "opacus": (
        Method("GN trace", "opacus", "ghost norms of C columns", _opacus(None, True)),
        Method(
            "GN trace sampled", "opacus", "ghost norms of 1 column", _opacus(1, True), exact=False
        ),
        Method(
            "GN trace sampled",
            "opacus",
            "per-sample gradients, 1 column",
            _opacus(1, False),
            exact=False,
            only=SMALL,
        ),
    ),
}
