"""What came of a comparison: a table of differences with intervals, a picture, files, models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from dither.errors import DitherError
from dither.lab.compare import page, picture
from dither.lab.compare.trial import Trial
from dither.lab.compare.values import Values, columns
from dither.text import grid


@dataclass(repr=False)
class Comparison(Values):
    """The values at the end of training: `values[method][quantity]` is [seeds], nan for a run that
    diverged or failed.

    failures: {"method · seed 0": a sentence}. `str` is a table; a notebook shows it as HTML.
    """

    trials: dict[str, Trial] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Mapping[str, Mapping[int, Mapping[str, float]]],
        seeds: Sequence[int],
        problem: Any,
        failures: Mapping[str, str],
        trials: Mapping[str, Trial],
    ) -> "Comparison":
        """From {method: {seed: {quantity: value}}}."""
        values = {name: columns(by_seed, seeds) for name, by_seed in rows.items()}
        chosen = any(trial.validates for trial in trials.values())
        return cls(values, tuple(seeds), str(problem), dict(failures), chosen, dict(trials))

    @property
    def models(self) -> "Models":
        """The trained models: `models[method][seed]`, in eval mode, without noise."""
        return Models(self)

    def __str__(self) -> str:
        lines = [self.problem] * bool(self.problem)
        for quantity in self.quantities:
            lines += ["", *grid(self.rows(quantity))]
        return "\n".join([*lines, "", *self.notes()]).strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return page.table(self)

    def plot(self, quantities: Sequence[str] | None = None) -> Figure:
        """Differences from the first method with 95 % intervals and one tick per seed, as a figure
        of pyplot. quantities: which ones; None: all.
        """
        import matplotlib.pyplot as plt

        return picture.draw(self, quantities, plt.figure)

    def save(self, folder: str | Path) -> Path:
        """Write index.html (one page with tables and picture), picture.svg, values.csv and
        values.parquet. Returns the path of the page.
        """
        return page.write(self, Path(folder))


class Models(Mapping[str, dict[int, nn.Module]]):
    """{method: {seed: the trained model}}; a method's models are built when they are asked for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def __getitem__(self, method: str) -> dict[int, nn.Module]:
        trial = self._comparison.trials[method]
        found = {}
        for seed in self._comparison.seeds:
            path = trial.weights(seed)
            if not path.is_file():
                continue
            model = trial.model.build(seed)
            try:
                model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
            except Exception as error:
                raise DitherError(
                    f"{path} can't be read ({error}): compare(…, again=True) trains it again"
                ) from error
            found[seed] = model.eval()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._comparison.trials)

    def __len__(self) -> int:
        return len(self._comparison.trials)
