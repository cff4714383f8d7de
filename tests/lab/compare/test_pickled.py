"""What a user brings, as bytes: the same in every process, another where anything is another."""

import random
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dither.lab.compare.pickled import generators, pickled

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def frozen(net):
    net[0].weight.requires_grad_(False)


def named(net):
    net[0].weight.no_decay = True


def held(net):
    net[1].running_mean.add_(1e-6)


def unheld(net):
    net.register_buffer("more", torch.ones(1), persistent=False)


def precise(net):
    net[2].bias = nn.Parameter(net[2].bias.detach().double())


@pytest.mark.parametrize("change", [frozen, named, held, unheld, precise])
def test_another_model_is_another(change):
    other = deepcopy(NET)
    assert pickled(other) == pickled(deepcopy(NET))
    change(other)
    assert pickled(other) != pickled(NET)


def counted(n):
    def count(x):
        return x if n in {"one", "two"} else None

    return count


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.ones(2), torch.ones(2, 1)),
        (torch.ones(2), nn.Parameter(torch.ones(2))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (torch.ones(2, 3), torch.ones(3, 2).T),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        ({"one", "two"}, {"one", "three"}),
        ({1, 2}, frozenset({1, 2})),
        (counted("one"), counted("two")),
        (lambda x: x + 1, lambda x: x + 2),
    ],
)
def test_another_thing_is_another(one, two):
    assert pickled([one]) != pickled([two])
    assert pickled([one]) == pickled([one])


def test_only_the_generators_of_the_data_do_not_count():
    """That of a step of one's own does."""
    own, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    before = pickled([own, other], blank=[own])
    own.manual_seed(3)
    assert pickled([own, other], blank=[own]) == before
    other.manual_seed(3)
    assert pickled([own, other], blank=[own]) != before


def test_generators_are_found_however_deep():
    class Mine(TensorDataset):
        def __init__(self, *tensors):
            super().__init__(*tensors)
            self.parts = {"a": [np.random.default_rng(0), random.Random(1)]}

    deep, of_order, again = torch.Generator(), torch.Generator(), np.random.RandomState(0)
    data = Mine(torch.ones(4, 1))
    data.transform = lambda x: x + torch.rand(1, generator=deep) + again.rand()
    sampler = RandomSampler(data, generator=of_order)
    found = generators(DataLoader(data, sampler=sampler, batch_size=2))
    wanted = [deep, of_order, again, *data.parts["a"]]
    assert len(found) == len(wanted)
    assert all(any(one is other for other in found) for one in wanted)


ELSEWHERE = """
import abc, hashlib, sys, typing, torch
from torch import nn
from dither.lab.compare.pickled import pickled
padding = [torch.ones(n) for n in range(int(sys.argv[1]))]  # other addresses than before
T = typing.TypeVar("T")
class Base(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
class Mine(Base):
    def f(self): return 1
class Of(typing.Generic[T]):
    kinds = {"one", "two", "three", "four"}
class Sub(torch.Tensor):
    pass
exec(compile("def cell(x): return x in {'a', 'b', 'c', 'd'}", f"/tmp/{sys.argv[1]}.py", "exec"))
net = nn.Linear(2, 2, dtype=torch.bfloat16)
nn.init.ones_(net.weight), nn.init.zeros_(net.bias)
what = [Mine(), Of(), Of[int], torch.ones(3).as_subclass(Sub), cell, net,
        frozenset({"a", "b", "c"}), {torch.float32, torch.int64}, torch.Generator().manual_seed(1),
        torch.eye(3).to_sparse()]
for one in [*what, what]:
    print(type(one).__name__, hashlib.sha256(pickled(one)).hexdigest())
"""


def test_it_is_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(ELSEWHERE, encoding="utf-8")
    told = [
        subprocess.run(
            [sys.executable, str(tmp_path / "mine.py"), padding],
            capture_output=True, text=True, timeout=300, check=True,
        ).stdout.splitlines()
        for padding in ("0", "5")
    ]  # fmt: skip
    assert told[0] == told[1]
