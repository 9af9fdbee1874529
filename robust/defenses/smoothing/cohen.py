"""Cohen's procedure, exactly: draws for the class, other draws for its chance, one Clopper-Pearson bound."""

from __future__ import annotations

import numpy as np

from robust.defenses.smoothing.anytime import Counts, Flags
from robust.defenses.smoothing.bounds import Array, lower_bound, radius_at

SELECTION, ESTIMATION = 100, 100_000
_PIECE = 4096


class CohenTest:
    """Looks once, after ``horizon`` draws. Source: Cohen et al., ICML 2019, section 3.2.2, Certify."""

    def __init__(self, sigma: float, alpha: float, horizon: int = ESTIMATION) -> None:
        self.sigma, self.alpha, self.horizon = sigma, alpha, horizon
        self.start(0)

    def start(self, images: int) -> None:
        self.low: Array = np.zeros(images)

    def look(self, rows: Counts, hits: Counts, draws: Counts) -> Flags:
        last = draws >= self.horizon
        self.low[rows] = np.where(last, lower_bound(hits, draws, self.alpha), 0.0)
        return np.asarray(last)

    def radius(self, row: int) -> float:
        """0, an abstention, where the bound is below 1/2."""
        return float(radius_at(self.low[row], self.sigma))

    def more(self, draws: int) -> int:
        return min(_PIECE, self.horizon - draws)
