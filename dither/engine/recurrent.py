"""Recurrent layers as the products they are: torch's fused kernels, unrolled.

    h_t = act(W x_t + b + U h_{t−1} + c)

W meets all positions at once, U one after another, so that rules meet both; a fused kernel hides
them. Packed sequences and projected LSTMs are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Cell = Callable[..., tuple[Tensor, ...]]


def lstm_step(gates: Tensor, h: Tensor, c: Tensor, u: Tensor, b: Any) -> tuple[Tensor, ...]:
    """(h, c) of an LSTM from W x + b [B, 4H]: gates i, f, g, o."""
    i, f, g, o = (gates + F.linear(h, u, b)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(gates: Tensor, h: Tensor, u: Tensor, b: Any) -> tuple[Tensor, ...]:
    """(h,) of a GRU from W x + b [B, 3H]: gates r, z, n."""
    (r, z, n), (s, t, m) = gates.chunk(3, -1), F.linear(h, u, b).chunk(3, -1)
    new = (n + (r + s).sigmoid() * m).tanh()
    keep = (z + t).sigmoid()
    return ((1 - keep) * new + keep * h,)


def plain_step(act: Callable[[Tensor], Tensor]) -> Cell:
    """(h,) of an Elman network."""
    return lambda gates, h, u, b: (act(gates + F.linear(h, u, b)),)


def layer(step: Cell, x: Tensor, state: tuple[Tensor, ...], w: Any, *, back: bool) -> Any:
    """([T, B, H], last state) of one direction of one layer, x [T, B, I]."""
    gates = F.linear(x, w[0], w[2] if len(w) > 2 else None)
    u, b = w[1], w[3] if len(w) > 2 else None
    out = []
    for t in reversed(range(len(x))) if back else range(len(x)):
        state = step(gates[t], *state, u, b)
        out.append(state[0])
    return torch.stack(out[::-1] if back else out), state


def unrolled(step: Cell, states: int) -> Callable[..., Any]:
    """The rule of a fused kernel whose state is `states` tensors."""

    def rule(
        mode: Any,
        func: Any,
        x: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any = True,
        num_layers: Any = 1,
        dropout: float = 0.0,
        train: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
    ) -> Any:
        per = 4 if has_biases else 2
        ways = 1 + bool(bidirectional)
        packed = isinstance(params, Tensor) or not isinstance(num_layers, int)
        if packed or len(params) != per * num_layers * ways:  # or projected
            return NotImplemented
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if len(initial) != states or x.dim() != 3:
            return NotImplemented
        with mode:
            h, ends = x.transpose(0, 1) if batch_first else x, []
            for n in range(num_layers):
                if n and dropout and train:
                    h = F.dropout(h, dropout, True)
                outs = []
                for way in range(ways):
                    at = n * ways + way
                    own = params[per * at : per * (at + 1)]
                    out, end = layer(step, h, tuple(s[at] for s in initial), own, back=way == 1)
                    outs.append(out)
                    ends.append(end)
                h = torch.cat(outs, -1) if ways > 1 else outs[0]
            last = [torch.stack([end[k] for end in ends]) for k in range(states)]
            return (h.transpose(0, 1) if batch_first else h, *last)

    return rule
