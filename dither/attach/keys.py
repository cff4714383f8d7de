"""Which draw an injection takes: its keys, and how `draw` spends σ over several parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dither.attach.ranks import rank
from dither.attach.site import Site
from dither.noise.draw import Source, key
from dither.noise.noises import at


@dataclass(frozen=True)
class Draws:
    """A draw is a function of (seed, ordinal, site, step). At an activation it is a function of
    the forward, the call and the rank too.

    seeds     one, or one per replica of a stacked model
    ordinals  for each seed, the number of this injection among those that share seed and a site
    draw      how a step spends σ over the groups: "each", "all", "cycle" or "random"
    groups    the M sets of parameter names among which σ is shared
    """

    seeds: tuple[int, ...]
    ordinals: tuple[int, ...]
    draw: str
    groups: tuple[frozenset[str], ...]

    def keys(self, *words: object) -> list[int]:
        """One key per seed."""
        pairs = zip(self.seeds, self.ordinals, strict=True)
        return [key(s, *(["injection", n] if n else []), *words) for s, n in pairs]

    def source(self, site: Site, step: int, micro: int, call: int) -> Source:
        """The source of a draw. A parameter has one draw per step, on all ranks.

        micro: the index m of the forward inside a held step; ~m for the mirrored draws of m.
        """
        m = ~micro if micro < 0 else micro
        where = () if site.side == "parameter" else (m, call, rank())
        return Source(self.keys(site.name, step - 1, *where), reflect=micro < 0)

    def scale(self, site: Site, step: int) -> float:
        """The factor on σ for this parameter at this step: 1, 1/√M, or 1 for one group and 0 for
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
        """The mean of `scale`² over steps: the share of σ² that a parameter has in R."""
        return 1.0 if site.side != "parameter" or self.draw == "each" else 1 / len(self.groups)


def noise_at(site: Site, step: int) -> Any:
    """A site's noise, with σ of its schedule at a step (counted from 1)."""
    return at(site.noise, max(step - 1, 0))
