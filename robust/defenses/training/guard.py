"""The guard against catastrophic overfitting.

A model trained on single steps can learn, within tens of batches, to make the single step useless: its accuracy under
FGSM stays or rises while that under PGD falls to nothing (Wong, Rice and Kolter, ICLR 2020, section 5.4). The guard
compares both on a few held-out images. When they part it takes the model back to where they did not, and lets training
go on with a shorter step and more noise before it, which is what keeps the loss linear around an image (Andriushchenko
and Flammarion, NeurIPS 2020; de Jorge et al., NeurIPS 2022).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from robust.defenses.training.validation import Gap

WIDENING = 0.10
FALL = 0.05
MOST_ROLLBACKS = 5
_STEP, _NOISE = 0.75, 1.25


@dataclass
class Guard:
    """What the guard knows. ``good_width`` and ``good_pgd``: the narrowest gap and best PGD accuracy seen so far."""

    step_scale: float = 1.0
    noise_scale: float = 1.0
    rollbacks: int = 0
    good_width: float = 1.0
    good_pgd: float = 0.0

    def collapsed(self, gap: Gap) -> bool:
        """Whether FGSM and PGD accuracy parted: the gap 10 points wider than at its best, PGD 5 points below its best.

        Otherwise the measure is taken in as a good one.
        """
        if gap.width > self.good_width + WIDENING and gap.pgd < self.good_pgd - FALL:
            return True
        self.good_width, self.good_pgd = min(self.good_width, gap.width), max(self.good_pgd, gap.pgd)
        return False

    def tighten(self) -> None:
        """A shorter step, more noise."""
        self.rollbacks += 1
        self.step_scale *= _STEP
        self.noise_scale *= _NOISE

    @property
    def gave_up(self) -> bool:
        return self.rollbacks > MOST_ROLLBACKS

    def saved(self) -> dict[str, float | int]:
        return asdict(self)
