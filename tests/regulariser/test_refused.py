"""What can't be done is said in one sentence: no wrong number, no noise that isn't there."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import dither
from dither import measures
from dither.measures import jacobian, local

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


# ----------------------------------------------------------------------------- where noise can't go


def test_replicas_on_several_devices():
    model = nn.DataParallel(plain())
    model.device_ids = [0, 1]  # as on a machine with two
    with pytest.raises(dither.DitherError, match="replicas that DataParallel makes of 'the model'"):
        dither.inject(model, dither.Weight(0.1))
    assert dither.inject(nn.DataParallel(plain()), dither.Weight(0.1)).sites


def test_what_fully_shard_makes(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = plain()
        fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
        for noise in (dither.Weight(0.1), dither.Additive(0.1)):
            with pytest.raises(dither.DitherError, match="'0' is under FSDP"):
                dither.inject(model, noise)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_packed_sequence(side):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 5)

        def forward(self, x):
            return self.gru(pack_padded_sequence(x, [3, 2]), torch.zeros(1, 2, 5))[1][0]

    net, x = Net().train(), torch.randn(3, 2, 4)
    with dither.inject(net, {f"gru:{side}": dither.Additive(0.1)}) as noise:
        with pytest.raises(dither.DitherError, match=r"gru:.*PackedSequence.*padded"):
            net(x)
        with noise.off():
            net(x)
        net.eval()(x)


def test_integers():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    x, y = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])
    with dither.inject(net, {"input": dither.Additive(0.1)}) as noise:
        for look in (
            lambda: dither.explicit(noise, x, y),
            lambda: dither.explicit(noise, x, y, curvature="full"),
            lambda: dither.expected(noise, x, y, draws=4),
            lambda: net.train()(x),
        ):
            with pytest.raises(dither.DitherError, match=r"'input' needs real numbers.*int64"):
                look()


def test_a_noise_that_is_no_dataclass():
    class Mine:
        sigma: float = 0.1
        side = "in"

        def displace(self, site, rng):
            return 0 * site.h

        def variance(self, g, site):
            return g

    with pytest.raises(dither.DitherError, match=r"Mine, which must be a dataclass"):
        dither.inject(plain(), Mine())
    assert dither.inject(plain(), dataclass(frozen=True)(Mine)()).sites


def test_attention_is_told_what_its_pattern_would_do():
    sites = dither.inject(nn.TransformerEncoderLayer(8, 2, 16), dither.Additive(0.1)).sites
    assert "the pattern 'self_attn:in' puts noise on its query alone" in str(sites)


# --------------------------------------------------------------------------------- what is measured


def test_local_asks_for_samples_in_front_and_one_call():
    rnn = nn.Sequential(nn.Linear(4, 3))
    with (
        dither.inject(rnn, {"0": dither.Node(1.0)}, batch_dim=1) as noise,
        pytest.raises(dither.DitherError, match="batch_dim=1"),
    ):
        local.local(noise, torch.randn(5, 6, 4), Y)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(torch.tanh(self.a(x))))

    with dither.inject(Twice(), {"a": dither.Node(1.0)}) as noise:
        for look in (local.local, local.terms):
            with pytest.raises(dither.DitherError, match="'a:out' is called twice"):
                look(noise, X, Y)


def test_layer_norms_see_through_no_function():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU()
            self.modular = True

        def forward(self, x):
            h = self.a(x)
            return F.log_softmax(self.b(self.act(h) if self.modular else F.relu(h)), -1)

    net = Net()
    assert set(jacobian.layers(net, X)) == {"a", "b"}
    net.modular = False
    with pytest.raises(dither.DitherError, match=r"the function 'relu' takes the output of 'a'"):
        jacobian.layers(net, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_nor_through_one_inside_a_block_or_in_place(inplace):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.drop = nn.Linear(4, 4), nn.Dropout()

        def forward(self, x):
            return self.drop(F.relu(self.lin(x), inplace=inplace))

    net = nn.Sequential(Block(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(dither.DitherError, match=r"'relu' takes the output of '0.lin'"):
        jacobian.layers(net, X)


def test_but_through_sums_and_views():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b, self.c = (
                nn.Linear(4, 4),
                nn.Tanh(),
                *(nn.Linear(4, 4) for _ in range(2)),
            )

        def forward(self, x):
            return self.c((x + self.b(self.act(self.a(x)))).view(-1, 4))

    assert set(jacobian.layers(Residual(), X)) == {"a", "b", "c"}


def test_layer_norms_are_those_without_noise_that_is_always_on():
    net = plain()
    clean = jacobian.layers(net, X)["0"].frobenius()
    with dither.inject(net, dither.Additive(1.0), when="always") as noise:
        assert jacobian.layers(net, X)["0"].frobenius() == clean
        assert noise.step == 0


def test_a_trace_of_a_relu_net_draws_nothing():
    net = plain().eval()
    before = torch.get_rng_state()
    assert measures.trace(net, "cross_entropy", (X, Y)).exact
    assert torch.equal(torch.get_rng_state(), before)


def test_measures_are_there_when_asked_for():
    code = (
        "import dither; m = dither.measures\n"
        "assert m.trace is m.curvature.trace\n"
        "assert all(hasattr(m, name) for name in m.__all__)\n"
        "try: m.nothing\n"
        "except AttributeError as e: assert 'nothing' in str(e)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_noise_that_is_off_says_nothing_when_another_is_read():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.gru(pack_padded_sequence(x, [3, 2]))[1][0])

    net, x = Net().eval(), torch.randn(3, 2, 4)
    paused = dither.inject(net, {"gru:in": dither.Additive(0.1)})
    paused.pause()
    noise = dither.inject(net, {"head:in": dither.Additive(0.1)})
    assert dither.explicit(noise, x, torch.tensor([0, 1])).R > 0
    noise.remove()
    with pytest.raises(dither.DitherError, match="was removed"):
        local.local(noise, x, torch.tensor([0, 1]))
    assert noise.reader is None


# -------------------------------------------------------------------------------------- the rest


def test_off_ends_also_by_an_exception():
    net = plain().train()
    clean = net(X)
    with dither.inject(net, dither.Additive(1.0)) as noise:
        with noise.off():
            torch.testing.assert_close(net(X), clean)
        with pytest.raises(RuntimeError), noise.off():
            net(X[:, 1:])
        assert not torch.equal(net(X), clean)
        noise.pause()
        with noise.off():
            pass
        assert noise.paused


@pytest.mark.parametrize("hang", [dither.langevin, dither.anti_pgd])
def test_noise_after_the_step_leaves_frozen_parameters_alone(hang):
    net = plain()
    net[0].requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), 0.0)
    hung = hang(optimiser, 0.5, seed=0)
    F.cross_entropy(net(X), Y).backward()
    optimiser.step()
    moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]
    hung.remove()


MEASURED = {
    "margins.inputs": measures.margins.inputs,
    "margins.boundary": measures.margins.boundary,
    "capacity.capacity": measures.capacity.capacity,
    "capacity.layers": lambda net, x, y: measures.capacity.layers(net, x),
    "capacity.path": lambda net, x, y: measures.capacity.path(net, x),
    "corruption": lambda *of: measures.robustness.corruption(*of, levels=[0.1]),
    "attack": lambda *of: measures.robustness.attack(*of, strengths=[0.1], bounds=(-9, 9)),
    "vanishing": measures.robustness.vanishing,
}


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(
    ("x", "got"),
    [({"x": X}, "dict"), ((X,), "tuple"), (X.long(), "torch.int64"), (X[:0], r"\[0, 4\]")],
    ids=["dict", "tuple", "integers", "empty"],
)
def test_measures_that_move_the_input_need_one_tensor_of_floats(name, x, got):
    with pytest.raises(dither.DitherError, match=f"x must be a tensor of floats.*got .*{got}"):
        MEASURED[name](plain(), x, Y[: len(x)])


@pytest.mark.parametrize("name", [n for n in MEASURED if n not in ("capacity.layers",
                                                                   "capacity.path")])  # fmt: skip
@pytest.mark.parametrize("y", [Y.tolist(), Y[:-1], Y[:, None]], ids=["list", "short", "column"])
def test_and_a_class_for_each_example(name, y):
    with pytest.raises(dither.DitherError, match="y "):
        MEASURED[name](plain(), X, y)


def test_only_the_library_is_installed():
    """As without the packages of dither[lab]: all but `compare` and `reproduce` work."""
    lab = "polars pooch sklearn scipy mlxtend matplotlib typer rich jinja2 torchmetrics foolbox"
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({lab.split()!r}))\n"
        "import torch\n"
        "from dither import *\n"
        "import dither\n"
        "net, x, y = torch.nn.Linear(3, 2), torch.randn(4, 3), torch.arange(4) % 2\n"
        "noise = dither.inject(net, dither.Additive(.1))\n"
        "assert dither.explicit(noise, x, y).R > 0\n"
        "dither.measures.trace(net.eval(), 'cross_entropy', (x, y))\n"
        "for name in ('compare', 'reproduce'):\n"
        "    try: getattr(dither, name)()\n"
        "    except dither.DitherError as e: assert \"pip install 'dither[lab]'\" in str(e), e\n"
        "    else: raise AssertionError(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
