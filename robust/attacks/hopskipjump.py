"""HopSkipJump: steps along a gradient that is estimated at the boundary, from the class alone."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Knowledge
from robust.attacks.queries import Book, DecisionAttack
from robust.errors import InputError
from robust.threats import per_image

# Points for the estimate lie around the boundary point at this share of its distance to the image.
_RADIUS = 0.1
# A rival start has to fool the model at this share of the distance so far.
_NEARER = 0.7
# The most times that a step is halved until it ends on the adversarial side.
_HALVINGS = 20
# More starts than anyone tries.
_MOST_STARTS = 2**40
# Points of one image that are asked about together.
_TOGETHER = 10


@dataclass(frozen=True)
class HopSkipJump(DecisionAttack):
    """Minimum norm: from an adversarial point far away to the boundary, then along it by estimated gradients.

    Settings:
        samples: points asked about for the first gradient; the t-th gets sqrt(t) times as many.
        rivals: random images that are tried once there is a starting point, each at 0.7 of its distance; one that
            fools the model there takes its place.
        starts: images (M, C, H, W), M at least 1, among which every image looks for a starting point, in their order,
            before it tries random ones. A targeted run on a real model needs images of the targets here: random ones
            are seldom read as the class wanted.

    Random images are of uniform color in cells, from one cell for the whole image down to one for each pixel, over and
    over. Starts are tried until one is adversarial.

    Source: Chen, Jordan and Wainwright, S&P 2020, Algorithms 1 and 2. Other than there, for small budgets (measured at
    200 to 2000 queries): half the samples; starts that are not all of one kind, and their rivals; points for the
    estimate at a tenth of the distance, which lets the bisection end as many digits sooner.

    Raises InputError for settings out of range and for ``starts`` of another shape than the images.
    """

    _: KW_ONLY
    samples: int = 50
    rivals: int = 18
    starts: Any = None

    name: ClassVar[str] = "hopskipjump"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    knowledge: ClassVar[Knowledge] = "decision"
    source: ClassVar[str] = "Chen et al., S&P 2020"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or self.rivals < 0:
            raise InputError(
                f"hopskipjump: samples must be at least 1 and rivals at least 0, not {self.samples} and {self.rivals}"
            )
        if self.starts is not None and not (isinstance(self.starts, Tensor) and len(self.starts)):
            raise InputError("hopskipjump: starts must be a tensor of at least one image (M, C, H, W)")

    def search(self, book: Book, seeds: Tensor) -> None:
        if self.starts is not None and self.starts.shape[1:] != book.images.shape[1:]:
            raise InputError(
                f"hopskipjump: starts of shape {tuple(self.starts.shape[1:])} are not like the images, "
                f"{tuple(book.images.shape[1:])}"
            )
        path = _Path(book, seeds)
        path.start(self.starts)
        path.compare(self.rivals)
        path.to_boundary()
        hops = 0
        while len(path.live):
            hops += 1
            path.hop(hops, int(self.samples * math.sqrt(hops)))


class _Path:
    """``points`` (N, C, H, W): an adversarial point of each image at the boundary, once there is one (``begun``)."""

    def __init__(self, book: Book, seeds: Tensor) -> None:
        self.book, self.seeds = book, seeds
        self.linf, self.values = book.geometry.name == "linf", book.images[0].numel()
        self.points = book.images.clone()
        self.begun = torch.zeros_like(book.spent, dtype=torch.bool)
        # Every start has a stream of random numbers, too; the limit must not decide which.
        self.streams = _MOST_STARTS

    @property
    def live(self) -> Tensor:
        return self._among(self.begun)

    def _among(self, chosen: Tensor) -> Tensor:
        live = self.book.live
        return live[chosen[live]]

    def start(self, given: Tensor | None) -> None:
        """An adversarial point, however far away: the first of those given, else the first random one."""
        shape, first = self.book.images.shape[1:], 0 if given is None else len(given)
        tried = 0
        while len(waiting := self._among(~self.begun)):
            if given is not None and tried < first:
                trial = given[tried].to(self.book.images).clamp(0, 1).expand(len(waiting), *shape)
            else:
                trial = _cells(self.seeds[waiting], tried, tried - first, shape).to(self.book.images.dtype)
            fooled = self.book.fooled(trial[:, None], waiting)[:, 0]
            self.points[waiting[fooled]], self.begun[waiting[fooled]] = trial[fooled], True
            tried += 1

    def compare(self, rivals: int) -> None:
        """Instead of the starting point, takes any of so many random ones that fools the model much nearer by."""
        shape, geometry = self.book.images.shape[1:], self.book.geometry
        for number in range(rivals):
            live = self.live
            images = self.book.images[live]
            far = _cells(self.seeds[live], self.streams + number, number, shape).to(images.dtype)
            wanted = _NEARER * geometry.length(self.points[live] - images)
            trial = self._between(far, live, (wanted / geometry.length(far - images).clamp_min(1e-12)).clamp_max(1))
            fooled = self.book.fooled(trial[:, None], live)[:, 0]
            self.points[live[fooled]] = trial[fooled]
        self.streams += rivals

    def to_boundary(self) -> None:
        """Bisects between each image and its point, which ends just on the adversarial side of the boundary.

        As close as the estimate needs it: a random unit vector's part along the boundary's normal is 1 / sqrt(D).
        """
        low, high, far = torch.zeros_like(self.book.distance), torch.ones_like(self.book.distance), self.points.clone()
        for _ in range(math.ceil(math.log2(2 * math.sqrt(self.values) / _RADIUS))):
            live = self.live
            middle = (low[live] + high[live]) / 2
            trial = self._between(far[live], live, middle)
            fooled = self.book.fooled(trial[:, None], live)[:, 0]
            low[live[~fooled]], high[live[fooled]] = middle[~fooled], middle[fooled]
            self.points[live[fooled]] = trial[fooled]

    def _between(self, far: Tensor, owners: Tensor, share: Tensor) -> Tensor:
        """At this share of the distance from the images: on the line (l2), or brought into the smaller ball (linf)."""
        images = self.book.images[owners]
        if not self.linf:
            return images + (far - images) * per_image(share, images)
        reach = per_image(share * self.book.geometry.length(far - images), images)
        return far.clamp(images - reach, images + reach)

    def hop(self, number: int, samples: int) -> None:
        """A gradient estimated from ``samples`` points, a step along it, and back to the boundary."""
        book = self.book
        distance = book.geometry.length(self.points - book.images)
        direction = self._direction(distance * _RADIUS * (math.sqrt(self.values) if self.linf else 1), samples)
        length, seeking, far = distance / math.sqrt(number), self.begun.clone(), self.points.clone()
        for _ in range(_HALVINGS):
            live = self._among(seeking)
            trial = (self.points[live] + direction[live] * per_image(length[live], book.images)).clamp_(0, 1)
            fooled = book.fooled(trial[:, None], live)[:, 0]
            far[live[fooled]], seeking[live[fooled]] = trial[fooled], False
            length[live[~fooled]] /= 2
        self.points = far
        self.to_boundary()

    def _direction(self, radius: Tensor, samples: int) -> Tensor:
        """Which way (N, C, H, W) the adversarial side lies, from points at ``radius`` (N,) around the boundary point.

        Equation 16 (with the mean as a baseline, which needs answers of both kinds); its sign in linf, else of norm 1.
        """
        book, zeros = self.book, torch.zeros_like(self.points)
        moved, weighted, verdicts, asked = zeros.clone(), zeros.clone(), torch.zeros_like(radius), 0
        while asked < samples and len(live := self.live):
            count = min(_TOGETHER, samples - asked)
            centers, reach = self.points[live][:, None], per_image(radius[live], self.points)[:, None]
            draws = torch.stack([self._draw(live, self.streams + asked + i) for i in range(count)], 1)
            trial = (centers + reach * draws).clamp_(0, 1)
            sign = torch.where(book.fooled(trial, live), 1.0, -1.0).to(radius)
            draws = (trial - centers) / reach
            moved[live] += draws.sum(1)
            weighted[live] += (draws * sign.view(*sign.shape, *[1] * (draws.dim() - 2))).sum(1)
            verdicts[live] += sign.sum(1)
            asked += count
        self.streams += samples
        mean = per_image(verdicts / max(asked, 1), zeros)
        estimate = torch.where(mean.abs() == 1, mean * moved, weighted - mean * moved)
        if self.linf:
            return estimate.sign()
        return estimate / per_image(book.geometry.length(estimate).clamp_min(1e-12), estimate)

    def _draw(self, owners: Tensor, stream: int) -> Tensor:
        """A random direction of l2 norm 1 for each image."""
        shape, dtype = self.points.shape[1:], self.points.dtype
        if self.linf:
            draw = 2 * randomness.uniform(self.seeds[owners], stream, shape, dtype) - 1
        else:
            draw = randomness.normal(self.seeds[owners], stream, shape, dtype)
        return draw / per_image(torch.linalg.vector_norm(draw.flatten(1), dim=1), draw)


def _cells(seeds: Tensor, stream: int, number: int, shape: torch.Size) -> Tensor:
    """Random images (N, *shape) of one color per cell. The first has one cell; with ``number`` their side halves."""
    sides = shape[1:] or shape
    levels = max(sides).bit_length()
    side = 2 ** (levels - 1 - number % levels)
    cells = randomness.uniform(seeds, stream, (*shape[: -len(sides)], *(-(-length // side) for length in sides)))
    for axis, length in enumerate(sides, start=cells.dim() - len(sides)):
        cells = cells.index_select(axis, torch.arange(length, device=cells.device) // side)
    return cells
