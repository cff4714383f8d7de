"""Kinds of models: each gives (model, x) in float64, drawn from torch's default generator.

A kind is self-contained, so that its source can be put into a script of its own.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

B = 4


def randint(low, high):
    return int(torch.randint(low, high, ()))


class Of(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run, self.plain = forward, False  # plain: without checkpoints, for the oracle
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.run(self, *x)


def smooth():
    return (nn.Tanh, nn.Softplus, nn.Sigmoid, nn.GELU)[randint(0, 4)]()


def chain():
    sizes = [randint(2, 5) for _ in range(randint(2, 4))]
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=randint(0, 2) == 1), smooth()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3)), torch.randn(B, sizes[0])


def convolution():
    dims = randint(1, 4)
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    if randint(0, 2):
        kind = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][dims - 1]
    groups = randint(1, 3)
    conv = kind(2, 2, 2, stride=randint(1, 3), padding=randint(0, 2), groups=groups)
    x = torch.randn(B, 2, *[3] * dims)
    return nn.Sequential(conv, smooth(), nn.Flatten(), nn.Linear(conv(x).flatten(1).shape[1], 3)), x


def norm():
    layer = [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)][randint(0, 3)]
    return nn.Sequential(nn.Linear(3, 4), layer, smooth(), nn.Linear(4, 3)), torch.randn(B, 3)


def embedding():
    def forward(m, x):
        return m.out(torch.tanh(m.table(x)).mean(1))

    return Of(forward, table=nn.Embedding(5, 3), out=nn.Linear(3, 3)), torch.randint(5, (B, 3))


def attention():
    first = randint(0, 2) == 1

    def forward(m, x):
        h = x if first else x.transpose(0, 1)
        h, _ = m.mix(h, h, h, need_weights=False)
        return m.out(torch.tanh(h).mean(1 if first else 0))

    mix = nn.MultiheadAttention(4, 2, batch_first=first)
    return Of(forward, mix=mix, out=nn.Linear(4, 3)), torch.randn(B, 3, 4)


def recurrent():
    kind = [nn.RNN, nn.GRU, nn.LSTM][randint(0, 3)]

    def forward(m, x):
        return m.out(m.cell(x)[0][:, -1])

    return Of(forward, cell=kind(2, 3, batch_first=True), out=nn.Linear(3, 3)), torch.randn(B, 3, 2)


def bare_parameter():
    def forward(m, x):
        h = m.a(x * m.p)
        return m.b(torch.tanh(h - m.q))

    parts = {"p": nn.Parameter(torch.randn(3)), "q": nn.Parameter(torch.randn(4))}
    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3), **parts), torch.randn(B, 3)


def several_calls():
    def forward(m, x):
        return m.out(torch.tanh(m.a(torch.tanh(m.a(x)))) + m.a(x))

    return Of(forward, a=nn.Linear(3, 3), out=nn.Linear(3, 3)), torch.randn(B, 3)


def tied():
    def forward(m, x):
        return F.linear(torch.tanh(m.a(x)), m.a.weight.T)

    return Of(forward, a=nn.Linear(3, 4)), torch.randn(B, 3)


def sliced():
    def forward(m, x):
        q, k = m.w.chunk(2)
        return m.out(torch.tanh(x @ q.T) * torch.sigmoid(x @ k.T))

    return Of(forward, w=nn.Parameter(torch.randn(6, 3)), out=nn.Linear(3, 3)), torch.randn(B, 3)


def parametrised():
    """By a parametrisation of one's own: torch's weight_norm has a wrong second derivative."""
    layer = nn.Linear(3, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return nn.Sequential(layer, smooth(), nn.Linear(4, 3)), torch.randn(B, 3)


def functional():
    def forward(m, x):
        return torch.einsum("bi,oi->bo", torch.tanh(F.linear(x, m.v, m.c)), m.w)

    v, w = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4))
    return Of(forward, v=v, w=w, c=nn.Parameter(torch.randn(4))), torch.randn(B, 3)


def several_inputs():
    def forward(m, a, b):
        return m.out(torch.tanh(m.a(a) + m.b(b)))

    parts = {"a": nn.Linear(3, 4), "b": nn.Linear(2, 4), "out": nn.Linear(4, 3)}
    return Of(forward, **parts), (torch.randn(B, 3), torch.randn(B, 2))


def in_place():
    def forward(m, x):
        h = m.a(x)
        h.mul_(2).add_(1)
        return m.b(torch.tanh_(h))

    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3)), torch.randn(B, 3)


def sequence_first():
    def forward(m, x):
        h = torch.tanh(m.a(x.transpose(0, 1)))
        return m.out(h.mean(0))

    return Of(forward, a=nn.Linear(2, 4), out=nn.Linear(4, 3)), torch.randn(B, 3, 2)


# ------------------------------------------------------------------------------------------ unusual


def ragged():
    """Rows of a packed batch belong to samples in the numbers a tensor says."""

    def forward(m, rows, owner):
        h = torch.tanh(m.a(rows))
        return m.out(torch.zeros(B, 4, dtype=h.dtype).index_add(0, owner, h))

    lengths = torch.randperm(B) + 1
    owner = torch.repeat_interleave(torch.arange(B), lengths)
    return (
        Of(forward, a=nn.Linear(3, 4), out=nn.Linear(4, 3)),
        (torch.randn(len(owner), 3), owner),
    )


def last_valid_step():
    def forward(m, x, length):
        h = torch.tanh(m.a(x.transpose(0, 1)))
        return m.out(h[length - 1, torch.arange(B)])

    x = (torch.randn(B, B, 2), torch.randint(1, B + 1, (B,)))
    return Of(forward, a=nn.Linear(2, 4), out=nn.Linear(4, 3)), x


def graph():
    """The batch's nodes are the samples, mixed by an adjacency that comes with it."""

    def forward(m, x, adjacency):
        return m.b(torch.tanh(adjacency @ m.a(x)))

    adjacency = (torch.rand(B, B) < 0.5).to(torch.float64)
    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3)), (torch.randn(B, 3), adjacency)


def pairs():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        return m.b(h + 0.5 * h.roll(B // 2, 0))

    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3)), torch.randn(B, 3)


def checkpointed():
    reentrant = randint(0, 2) == 1

    def forward(m, x):
        def part(h):
            return torch.tanh(m.a(h))

        h = m.first(x)
        h = part(h) if m.plain else checkpoint(part, h, use_reentrant=reentrant)
        return m.b(h)

    parts = {"first": nn.Linear(3, 3), "a": nn.Linear(3, 4), "b": nn.Linear(4, 3)}
    return Of(forward, **parts), torch.randn(B, 3)


def forces():
    def forward(m, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            energy = m.b(torch.tanh(m.a(x))).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]

    return Of(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 1)), torch.randn(B, 3)


def experts():
    """Each sample goes through the expert that it is nearest to."""

    def forward(m, x):
        rows = []
        for i, expert in enumerate(m.experts):
            mine = (x[:, 0] > 0).long() == i
            out = torch.zeros(B, 4, dtype=x.dtype)
            rows.append(out.index_put((mine.nonzero()[:, 0],), torch.tanh(expert(x[mine]))))
        return m.out(sum(rows))

    both = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
    return Of(forward, experts=both, out=nn.Linear(4, 3)), torch.randn(B, 3)


def broadcast_bias():
    def forward(m, x):
        return m.out(torch.tanh(m.a(x) + m.shift))

    parts = {"a": nn.Linear(3, 4), "shift": nn.Parameter(torch.randn(1)), "out": nn.Linear(4, 3)}
    return Of(forward, **parts), torch.randn(B, 3)


def complex_filter():
    """A product in frequency space, its factors kept as pairs of real numbers."""

    def forward(m, x):
        f = torch.fft.rfft(m.a(x)) * torch.view_as_complex(m.w)
        return m.out(torch.tanh(torch.fft.irfft(f, n=4)))

    parts = {"a": nn.Linear(3, 4), "w": nn.Parameter(torch.randn(3, 2)), "out": nn.Linear(4, 3)}
    return Of(forward, **parts), torch.randn(B, 3)


def transformed():
    """A transform of torch.func in the forward."""
    way = randint(0, 2)

    def forward(m, x):
        f = lambda t: torch.tanh(F.linear(t, m.w, m.c))  # noqa: E731
        if way == 0:
            return m.out(torch.func.vmap(f)(x))
        slopes = torch.func.vmap(torch.func.grad(lambda t: f(t).square().sum()))(x)
        return m.out(torch.tanh(slopes))

    w, c = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
    return Of(forward, w=w, c=c, out=nn.Linear(3, 3)), torch.randn(B, 3)


def bag():
    """torch can't differentiate a bag twice: the oracle's is made of single rows."""
    mode, slope = ("sum", "mean", "max")[randint(0, 3)], smooth()

    def forward(m, x):
        if m.plain:
            rows = F.embedding(x, m.table.weight)
            h = rows.amax(1) if mode == "max" else getattr(rows, mode)(1)
        else:
            h = m.table(x)
        return m.out(slope(h))

    parts = {"table": nn.EmbeddingBag(6, 4, mode=mode), "out": nn.Linear(4, 3)}
    return Of(forward, **parts), torch.randint(6, (B, 5))


ORDINARY = [
    chain, convolution, norm, embedding, attention, recurrent, bare_parameter, several_calls, tied,
    sliced, parametrised, functional, several_inputs, in_place, sequence_first,
]  # fmt: skip
UNUSUAL = [
    ragged, last_valid_step, graph, pairs, checkpointed, forces, experts, broadcast_bias,
    complex_filter, transformed, bag,
]  # fmt: skip
KINDS = {kind.__name__: kind for kind in (*ORDINARY, *UNUSUAL)}
