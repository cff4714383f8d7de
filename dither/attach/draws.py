"""Which draw an injection takes: its keys, a parameter's share of σ, the noise at a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dither.attach.ranks import agreed, compare, rank, ranks
from dither.attach.site import Site, label
from dither.noise.draw import Source, key
from dither.noise.here import Here
from dither.noise.noises import Node, at


class Draws:
    """A draw is a function of (seed, ordinal, site, step), for activations also of the call and the
    rank. σ is that of the step, times what `draw` leaves of it.
    """

    seeds: tuple[int, ...]
    ordinals: tuple[int, ...]  # of this injection among those that share a seed and a site
    seed_given: bool  # else the ranks have yet to agree
    compared: bool  # whether the ranks have compared their seeds
    draw: str
    groups: list[set[str]]
    stack: int
    batch_dim: int
    step: int
    nodes: Any

    def here(self, site: Site, h: Tensor) -> Here:
        """The site as the noise's faces see it."""
        w = self.nodes[label(site.name)] if isinstance(site.noise, Node) else None
        return Here(h, w, self.stack, self.batch_dim, site.name)

    def source(
        self, site: Site, step: int, micro: int, call: int, *, reflect: bool = False
    ) -> Source:
        """Keyed by seed, site, step and call; activations by the rank too, parameters not.

        micro: ~m for the mirror image of m's.
        """
        if not self.seed_given and ranks() > 1:
            self.seeds, self.seed_given = agreed(self.seeds), True
        if not self.compared and ranks() > 1 and torch.is_grad_enabled():
            self.compared = True  # once, in a step that all ranks take
            compare(self.seeds)
        micro, reflect = (~micro, not reflect) if micro < 0 else (micro, reflect)
        where = () if site.side == "parameter" else (micro, call, rank())
        return Source(self.keys(site.name, step - 1, *where), reflect=reflect)

    def keys(self, *words: object) -> list[int]:
        """The key of each seed, and of this injection among those that share it and a site."""
        both = zip(self.seeds, self.ordinals, strict=True)
        return [key(s, *(["injection", n] if n else []), *words) for s, n in both]

    def scale(self, site: Site, step: int) -> float:
        """What `draw` leaves of σ for a parameter in a step: 1, 1/√M, or 1 for one tensor and 0 for
        the others.
        """
        if site.side != "parameter" or self.draw == "each":
            return 1.0
        m = len(self.groups)
        if self.draw == "all":
            return m**-0.5
        chosen = step - 1 if self.draw == "cycle" else self.keys("which", step - 1)[0]
        return float(site.name in self.groups[chosen % m])

    def share(self, site: Site) -> float:
        """The mean over steps of `scale`²: how much of σ² a parameter gets in R."""
        return 1.0 if site.side != "parameter" or self.draw == "each" else 1 / len(self.groups)

    def noise_at(self, site: Site, step: int | None = None) -> Any:
        """The site's noise with σ read off the schedule at a step (the current one by default)."""
        return at(site.noise, max((self.step if step is None else step) - 1, 0))
