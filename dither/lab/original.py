"""A claim of a paper in its own words, and which claims of its figures decide it.

Each paper's package has `claims.py` with `ORIGINAL`, a tuple of these in the paper's order.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Original:
    """One of the paper's claims.

    id       "C4"; claims of figures whose id begins with it ("C4 MLP, few images") are its variants
    text     the paper's sentence, in short
    place    its place in the paper: "Fig. 3a"
    by       the claims that decide it: "camuto2020/fig3: C4 MLP". If there are several, it holds if
             all hold, and it fails if one fails
    settle   what would settle it, if it is not judged: one sentence, with its cost
    counts   False for a claim that cannot fail, which its text says
    limits   what its verdict at the decisive scale does not say: one sentence
    """

    id: str
    text: str
    place: str
    by: tuple[str, ...]
    settle: str = ""
    counts: bool = True
    limits: str = ""

    @property
    def figure(self) -> str:
        """The first figure that decides it."""
        return self.by[0].partition(": ")[0]
