"""Two processes on gloo: weight noise is the same on both ranks, activation noise is not."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dither

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def everyone(t):
    """A tensor of each rank."""
    found = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(found, t.detach().contiguous())
    return found


def rank(number, port, scenario):
    """One process of a scenario."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    try:
        for part in scenario:
            part(number)
    finally:
        dist.destroy_process_group()


def weights_agree_and_activations_differ(number):
    for wrapped in (True, False):
        for seed in (5, None):
            torch.manual_seed(number)  # the ranks' own generators differ
            x = torch.ones(2, 4)
            bare = net()
            model = DistributedDataParallel(bare)
            with dither.inject(model if wrapped else bare, dither.Weight(0.1), seed=seed) as noise:
                assert noise.model is bare
                for _ in range(2):
                    one, two = everyone(model(x))
                    assert torch.equal(one, two)
            torch.manual_seed(number)
            with dither.inject(model if wrapped else bare, dither.Additive(0.1), seed=seed):
                one, two = everyone(model(x))
                assert not torch.equal(one, two)


def parameters_stay_in_step(number):
    torch.manual_seed(number)
    model = DistributedDataParallel(net())
    dither.inject(model, dither.Weight(0.1))
    dither.inject(model, dither.Multiplicative(0.1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(2, 4)).square().sum().backward()
        optimiser.step()
    for p in model.parameters():
        one, two = everyone(p)
        assert torch.equal(one, two)


def nodes_stay_in_step(number):
    """Their gradient is the mean over ranks, also when micro-batches accumulate."""
    torch.manual_seed(number)
    bare = net()
    noise = dither.inject(bare, dither.Node(1.0))
    model = DistributedDataParallel(bare)
    alone = []
    for w in noise.parameters():  # what each rank would have by itself
        w.register_hook(lambda g: alone.append(everyone(g)))
    for micro in range(2):
        alone.clear()
        before = [w.grad.clone() if micro else 0 for w in noise.parameters()]
        model(torch.randn(2, 4)).square().sum().backward()
        for w, b, (one, two) in zip(noise.parameters(), before, reversed(alone), strict=True):
            torch.testing.assert_close(w.grad, b + (one + two) / 2)


def training_on_R_stays_in_step(number):
    """Through DDP's own forward, so that loss + R has the mean gradient of the ranks."""
    torch.manual_seed(number)
    for noise in (dither.Additive(0.3), dither.Weight(0.1), dither.Node(1.0)):
        for samples in (None, 1):
            model = DistributedDataParallel(net())
            injected = dither.inject(model, noise, seed=0)
            optimiser = torch.optim.SGD([*model.parameters(), *injected.parameters()], lr=0.1)
            for _ in range(2):
                optimiser.zero_grad()
                x, y = torch.randn(4, 4), torch.randint(3, (4,))
                found = dither.explicit(injected, x, y, samples=samples)
                (found.loss + found.R).backward()
                optimiser.step()
            for p in (*model.parameters(), *injected.parameters()):
                one, two = everyone(p)
                torch.testing.assert_close(one, two)


def nodes_start_alike(number):
    torch.manual_seed(number)
    noise = dither.inject(net(), dither.Node(1.0))
    for w in noise.parameters():
        one, two = everyone(w)
        assert torch.equal(one, two)


def dtensors_are_refused(number):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    model = net()
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(dither.DitherError, match=r"can't reach '0.weight': it is a DTensor"):
        dither.inject(model, dither.Weight(0.1))


def different_seeds_are_told_on_every_rank(number):
    for noise in (dither.Weight(0.1), dither.Additive(0.1), dither.Node(1.0)):
        with dither.inject(net(), noise, seed=7 + number) as injected:
            with pytest.raises(dither.DitherError, match="7 on rank 0, 8 on rank 1"):
                injected.model(torch.ones(2, 4))
            with torch.no_grad():  # no training: a rank may look at its own noise alone
                injected.model(torch.ones(2, 4))


def sharding_after_inject_is_refused(number):
    from torch.distributed.fsdp import fully_shard

    for layers, said in (((), "Sequential' is under FSDP"), ((0,), "Sequential' is under FSDP")):
        model = net()
        noise = dither.inject(model, dither.Weight(0.1), seed=0)
        for layer in layers:
            fully_shard(model[layer])
        fully_shard(model)
        with pytest.raises(dither.DitherError, match=said):
            model(torch.ones(2, 4))
        noise.remove()
    model = nn.Sequential(net(), nn.Linear(3, 2))
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    fully_shard(model[0][0])
    with pytest.raises(dither.DitherError, match=r"can't reach '0\.0\.weight': it is a DTensor"):
        model(torch.ones(2, 4))
    noise.remove()


def activations_under_fully_shard(number):
    """Outputs, gradients, R and E[Δℓ] are those of the model that is not sharded."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(number)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    for noise in (dither.Additive(0.3), dither.Multiplicative(0.3)):
        sharded, plain = net(), net()
        for layer in (sharded[0], sharded[2]):
            fully_shard(layer)
        fully_shard(sharded)
        a, b = (dither.inject(m, noise, seed=1) for m in (sharded, plain))
        for _ in range(2):
            out, expected = sharded(x), plain(x)
            assert torch.equal(out, expected)
            nn.functional.cross_entropy(out, y).backward()
            nn.functional.cross_entropy(expected, y).backward()
        for samples in (None, 2):
            found = []
            for injected in (a, b):
                torch.manual_seed(2)
                with torch.no_grad():
                    found.append(dither.explicit(injected, x, y, samples=samples).R)
            torch.testing.assert_close(*found)
        with pytest.raises(dither.DitherError, match="under fully_shard, which frees the weights"):
            dither.explicit(a, x, y)
        for p, q in zip(sharded.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(q.grad, op=dist.ReduceOp.SUM)
            torch.testing.assert_close(p.grad.full_tensor(), q.grad / 2)
        torch.manual_seed(3)
        one = dither.expected(a, x, y, draws=8)
        torch.manual_seed(3)
        assert one.value == pytest.approx(dither.expected(b, x, y, draws=8).value, abs=1e-6)


def test_two_ranks():
    scenario = (
        weights_agree_and_activations_differ,
        parameters_stay_in_step,
        nodes_start_alike,
        training_on_R_stays_in_step,
        nodes_stay_in_step,
        dtensors_are_refused,
        different_seeds_are_told_on_every_rank,
        sharding_after_inject_is_refused,
        activations_under_fully_shard,
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(rank, (port, scenario), nprocs=2)
