"""Weight noise under fully_shard, on two gloo processes against one that is not sharded."""

import contextlib
import copy
import gc
import socket
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(
    not hasattr(fsdp, "fully_shard"), reason="torch without fully_shard"
)


class Block(nn.Module):
    """A residual block, recomputed in the backward if asked. `down` is used without being called,
    as nn.MultiheadAttention uses its out_proj.
    """

    def __init__(self, recomputed=False):
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)
        self.recomputed = recomputed

    def inside(self, h):
        g = torch.tanh(self.up(self.norm(h)))
        return h + nn.functional.linear(g, self.down.weight, self.down.bias)

    def forward(self, h):
        if self.recomputed:
            return checkpoint(self.inside, h, use_reentrant=False)
        return self.inside(h)


def net(recomputed=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), Block(recomputed), Block(recomputed), nn.Linear(6, 3, bias=False)
    )


def shard(model):
    """As one does: each block, then what is left."""
    for block in (model[1], model[2]):
        fsdp.fully_shard(block)
    fsdp.fully_shard(model)
    return model


def batch(number, n=5):
    rng = torch.Generator().manual_seed(10 + number)
    return torch.randn(n, 4, generator=rng), torch.randint(3, (n,), generator=rng)


def both(n=(5, 5)):
    """The batches of both ranks together."""
    parts = [batch(r, n[r]) for r in (0, 1)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


NOISES = {
    "every tensor": ((dither.Weight(0.3),), {}),
    "shared σ": ((dither.Weight(0.3),), {"draw": "all"}),
    "in turn, by layer": ((dither.Weight(0.3, dither.uniform),), {"draw": "cycle", "by": "layer"}),
    "some": (({"1.*": dither.Weight(0.2), "3.weight": dither.Relative(0.2)},), {}),
    "DropConnect": (({"*.weight": dither.DropConnect(0.5)},), {}),
    "a schedule": ((dither.Weight(lambda step: 0.1 * step),), {}),
}


def training_is_that_of_one_process(number):
    """Draws, losses, gradients and weights over several steps, with recomputed blocks too."""
    for recomputed in (False, True):
        for kind, (what, how) in NOISES.items():
            sharded, plain = shard(net(recomputed)), net()
            ours, theirs = (dither.inject(m, *what, seed=3, **how) for m in (sharded, plain))
            a, b = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (sharded, plain))
            for step in range(4):
                x, y = batch(number + 2 * step)
                a.zero_grad()
                out = sharded(x)
                nn.functional.cross_entropy(out, y).backward()
                a.step()
                parts = [batch(r + 2 * step) for r in (0, 1)]
                b.zero_grad()
                with theirs.hold():  # one draw of W for both halves
                    for r, (xr, yr) in enumerate(parts):
                        z = plain(xr)
                        (nn.functional.cross_entropy(z, yr) / 2).backward()
                        if r == number:
                            torch.testing.assert_close(out, z)
                b.step()
                for (name, p), q in zip(
                    sharded.named_parameters(), plain.parameters(), strict=True
                ):
                    where = f"{kind}, recomputed {recomputed}, step {step}: {name}: "
                    torch.testing.assert_close(
                        p.full_tensor(), q, msg=lambda m, where=where: where + m
                    )
            assert ours.step == theirs.step == 4
            ours.remove()
            theirs.remove()
            with torch.no_grad():
                torch.testing.assert_close(sharded(x), plain(x))
                assert torch.equal(sharded(x), sharded(x))


def noise_comes_and_goes(number):
    """eval, off, no_grad, remove and two injections."""
    sharded, plain, (x, _) = shard(net()), net(), batch(number)
    ones = [dither.inject(m, dither.Weight(0.1), seed=1) for m in (sharded, plain)]
    twos = [dither.inject(m, {"1.*": dither.Weight(0.3)}, seed=2) for m in (sharded, plain)]
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(sharded(x), plain(x))
        for m in (sharded, plain):
            m.eval()
        torch.testing.assert_close(sharded(x), net()(x))
        for m in (sharded, plain):
            m.train()
        for n in ones:
            n.pause()
        torch.testing.assert_close(sharded(x), plain(x))
        for n in (*ones, *twos):
            n.remove()
        torch.testing.assert_close(sharded(x), net()(x))
    assert not any(m._forward_hooks_always_called for m in sharded.modules())


def gradients_of(sharded, plain, number, between=lambda noise: None, noises=()):
    """Both backwards, the plain one of both batches; their gradients have to be equal."""
    x, y = batch(number)
    loss = nn.functional.cross_entropy(sharded(x), y)
    for noise in noises[0]:
        between(noise)
    loss.backward()
    losses = []
    with contextlib.ExitStack() as held:
        for noise in noises[1]:
            held.enter_context(noise.hold())
        for r in (0, 1):
            xr, yr = batch(r)
            losses.append(nn.functional.cross_entropy(plain(xr), yr) / 2)
    for noise in noises[1]:
        between(noise)
    sum(losses).backward()
    for (name, p), q in zip(sharded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, msg=lambda m, n=name: f"{n}: {m}")


def two_noises_at_a_site(number):
    """Their order is that of the model that is not sharded."""
    whats = (dither.Weight(0.3), dither.Relative(0.3), {"1.*": dither.DropConnect(0.4)})
    for some in (whats[:2], whats[1:], whats):
        sharded, plain = shard(net()), net()
        noises = [[dither.inject(m, w, seed=1) for w in some] for m in (sharded, plain)]
        gradients_of(sharded, plain, number, noises=noises)


def units_under_a_checkpoint(number):
    """They are recomputed, and right; so with an offload of what autograd saves."""

    class Blocks(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.parts, self.kind = net(), kind

        def forward(self, h):
            for part in self.parts:
                if self.kind == "offload" and isinstance(part, Block):
                    with torch.autograd.graph.save_on_cpu():
                        h = part(h)
                elif self.kind in (True, False) and isinstance(part, Block):
                    h = checkpoint(part, h, use_reentrant=self.kind)
                else:
                    h = part(h)
            return h

    for kind in (True, False, "offload"):
        sharded, plain = Blocks(kind), Blocks(None)
        for block in sharded.parts[1:3]:
            fsdp.fully_shard(block)
        fsdp.fully_shard(sharded)
        calls = []
        sharded.parts[1].up.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        noises = [[dither.inject(m, dither.Weight(0.3), seed=1)] for m in (sharded, plain)]
        gradients_of(sharded, plain, number, noises=noises)
        assert len(calls) == (1 if kind == "offload" else 2)


def a_change_before_backward_changes_nothing(number):
    def change(noise):
        noise.set(dict.fromkeys(noise.sites, 0.01))
        noise.pause()

    sharded, plain = shard(net()), net()
    noises = [[dither.inject(m, dither.Weight(0.3), seed=1)] for m in (sharded, plain)]
    gradients_of(sharded, plain, number, change, noises)


def an_interrupt_leaves_nothing_that_acts(number):
    """Ctrl-C and `remove` inside a forward."""
    for way in ("interrupt", "remove"):
        sharded, plain = shard(net()), net()
        noise = dither.inject(sharded, dither.Weight(0.3), seed=1)

        def act(*_, way=way, noise=noise):
            if way == "remove":
                noise.remove()
                return
            raise KeyboardInterrupt

        handle = sharded[2].norm.register_forward_hook(act)
        (x, y), raised = batch(number), contextlib.nullcontext()
        if way == "interrupt":
            raised = pytest.raises(KeyboardInterrupt)
        with raised:
            sharded(x)
        handle.remove()
        noise.remove()
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        assert not any("weight" in m.__dict__ for m in sharded.modules())
        nn.functional.cross_entropy(plain(x), y).backward()  # any other net


def gathered_weights_are_not_kept(number):
    """After the forward no W + δ is alive, though a backward is to come."""
    sharded, (x, y) = shard(net()), batch(number)
    dither.inject(sharded, dither.Weight(0.3), seed=0)
    seen = []

    def look(module, args):
        seen.append(weakref.ref(module.__dict__["weight"].untyped_storage()))

    for layer in (sharded[0], sharded[1].up, sharded[3]):
        layer.register_forward_pre_hook(look)
    loss = nn.functional.cross_entropy(sharded(x), y)
    gc.collect()
    assert len(seen) == 3
    assert all(storage() is None for storage in seen)
    loss.backward()


def an_exception_leaves_nothing(number):
    sharded, (x, _) = shard(net()), batch(number)
    noise = dither.inject(sharded, dither.Weight(0.3), seed=0)

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    handle = sharded[2].norm.register_forward_hook(stop)
    with pytest.raises(Stop):
        sharded(x)
    handle.remove()
    assert not any(site.gathered or site.put is not None for site in noise.ordered)
    assert not any("weight" in m.__dict__ for m in sharded.modules())


def sampled_R_is_that_of_all_batches(number):
    """In the mean over signs, for batches of different size; gradients are left as they were."""
    plain, n = net(), (4, 6)
    (x, y), (X, Y) = batch(number, n[number]), both(n)
    for name, recomputed in (("every tensor", True), ("shared σ", False), ("some", False)):
        (what, how), sharded = NOISES[name], shard(net(recomputed))
        ours, theirs = (dither.inject(m, *what, seed=3, **how) for m in (sharded, plain))
        exact = dither.explicit(theirs, X, Y)
        sharded(x).sum().backward()
        before = [p.grad.full_tensor().clone() for p in sharded.parameters()]
        with torch.no_grad():
            sharded(x)  # the root stays gathered
        step = ours.step
        torch.manual_seed(0)  # the same on both ranks
        with torch.no_grad():
            found = dither.explicit(ours, x, y, samples=64)
        torch.testing.assert_close(found.loss, exact.loss.detach())
        assert found.R.item() == pytest.approx(exact.R.item(), rel=0.35)
        for name, part in exact.by_site.items():
            assert found.by_site[name].item() == pytest.approx(part.item(), rel=0.6), name
        others = [torch.empty_like(found.R) for _ in range(2)]
        dist.all_gather(others, found.R)
        assert torch.equal(*others)
        assert ours.step == step
        for p, g in zip(sharded.parameters(), before, strict=True):
            assert torch.equal(p.grad.full_tensor(), g)
        theirs.remove()


def what_cannot_be_is_said(number):
    sharded, (x, y) = shard(net()), batch(number)
    noise = dither.inject(sharded, dither.Weight(0.3), seed=0)
    for call in (
        lambda: dither.explicit(noise, x, y),
        lambda: dither.explicit(noise, x, y, samples=1),
    ):
        with pytest.raises(dither.DitherError, match="R is sampled and has no gradient"):
            call()
    with torch.no_grad(), pytest.raises(dither.DitherError, match="sharded over ranks by fully_sh"):
        dither.expected(noise, x, y, draws=8)
    with pytest.raises(dither.DitherError, match="of weights under fully_shard R is sampled"):
        dither.balance(noise, x, y)
    noise.remove()
    mixed = dither.inject(sharded, {"1.*": dither.Weight(0.3), "0:out": dither.Additive(0.1)})
    with torch.no_grad(), pytest.raises(dither.DitherError, match=r"'0:out' is not sharded"):
        dither.explicit(mixed, x, y, samples=1)
    mixed.remove()
    model = net()
    model[2].down.weight = model[1].down.weight
    fsdp.fully_shard([model[1], model[2]])
    fsdp.fully_shard(model)
    with pytest.raises(dither.DitherError, match="modules share it that fully_shard gathers apart"):
        dither.inject(model, dither.Weight(0.1))
    sharded = shard(net())
    noise = dither.inject(sharded, dither.Weight(0.1), seed=0)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    with torch.no_grad(), pytest.raises(dither.DitherError, match="plain mean over samples"):
        dither.explicit(noise, x, y, weighted, samples=1)
    sharded.set_requires_gradient_sync(False)
    nn.functional.cross_entropy(sharded(x), y).backward()
    with torch.no_grad(), pytest.raises(dither.DitherError, match="needs gradients that are reduc"):
        dither.explicit(noise, x, y, samples=1)
    sharded.set_requires_gradient_sync(True)
    with torch.no_grad(), pytest.raises(dither.DitherError, match="gradients wait to be reduced"):
        dither.explicit(noise, x, y, samples=1)
    nn.functional.cross_entropy(sharded(x), y).backward()
    with torch.no_grad():
        assert dither.explicit(noise, x, y, samples=1).R > 0
    noise.remove()
    late = net()
    dither.inject(late, dither.Weight(0.1), seed=0)
    shard(late)
    with pytest.raises(dither.DitherError, match="call fully_shard first, then inject"):
        late(x)
    copied = copy.deepcopy(net())
    assert not any(m._forward_hooks for m in copied.modules())


SCENARIO = (
    training_is_that_of_one_process,
    noise_comes_and_goes,
    two_noises_at_a_site,
    units_under_a_checkpoint,
    a_change_before_backward_changes_nothing,
    gathered_weights_are_not_kept,
    an_interrupt_leaves_nothing_that_acts,
    an_exception_leaves_nothing,
    sampled_R_is_that_of_all_batches,
    what_cannot_be_is_said,
)


def rank(number, port):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2
    )
    try:
        for part in SCENARIO:
            part(number)
    finally:
        dist.destroy_process_group()


def test_two_ranks():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(rank, (port,), nprocs=2)
