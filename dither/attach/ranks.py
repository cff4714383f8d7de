"""Which process of a distributed run this is."""

from __future__ import annotations

from typing import Any

import torch.distributed

from dither.errors import DitherError


def ranks() -> int:
    """How many processes train together; 1 where nothing is distributed."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """The number of this one."""
    return torch.distributed.get_rank() if _distributed() else 0


def agreed(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Rank 0's seeds, so that every rank perturbs the weights alike."""
    box = [seeds]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def compare(seeds: tuple[int, ...]) -> None:
    """Raises DitherError, on every rank, where the ranks have different seeds: each would perturb
    its weights in its own way, and Nodes' vectors would differ for good.
    """
    gathered: list[Any] = [None] * ranks()
    torch.distributed.all_gather_object(gathered, seeds)
    if len(set(gathered)) > 1:
        shown = ", ".join(
            f"{s[0] if len(s) == 1 else list(s)} on rank {r}" for r, s in enumerate(gathered)
        )
        raise DitherError(
            f"the noise needs one seed on all ranks: got {shown}; pass the same seed to inject "
            "everywhere (activations draw by rank all the same), or none"
        )


def averaged(parameter: torch.Tensor) -> None:
    """After a backward: the gradient becomes its mean over the ranks, as DDP does for the model's.

    Averaged parts stay as they are, so accumulating over micro-batches is right too.
    """
    if ranks() > 1 and parameter.grad is not None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= ranks()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
