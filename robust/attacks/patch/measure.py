"""How often a patch misleads a model: on images and conditions where the model reads the unpatched sign right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robust.attacks.base import Model
from robust.attacks.patch.optimize import check_source
from robust.attacks.patch.placing import check_boxes, in_pixels, light_on, paste, whole
from robust.attacks.patch.regions import Anywhere, Placement, Region
from robust.attacks.patch.transforms import Conditions, Drawn, apply
from robust.errors import InputError
from robust.models import evaluating
from robust.randomness import image_seeds, uniform
from robust.stats import mean_rate
from robust.summary import MeanRate

CONTROLS = ("noise", "grey", "sticker")


@dataclass(frozen=True)
class Success:
    """Means over images of the share of their draws, with intervals over images; None where no draw counts.

    A draw counts where the model reads the unpatched image, under the same conditions, as its label.
    targeted: read as the target (None without one); untargeted: read as anything but the label.
    """

    targeted: MeanRate | None
    untargeted: MeanRate | None
    draws: int


@dataclass(frozen=True)
class Stratum:
    """Success among draws whose ``of`` (scale, distance, angle, brightness, ...) lies in [low, high); in the last one
    the greatest value lies as well."""

    of: str
    low: float
    high: float
    success: Success


@dataclass(frozen=True)
class PatchMeasurement:
    """What :func:`measure_patch` found.

    images, draws: how many, and draws of each. read: share of all draws in which the unpatched image is read right.
    patch: success of the patch; controls: of the same area filled with noise, grey and a sticker's picture;
    strata: of the patch, by its scale, distance, angle to the side, brightness and rotation, as far as they vary.
    outcomes: (images, draws, 3) bool: counted, read as the target, read as anything but the label.
    """

    images: int
    draws: int
    read: MeanRate
    patch: Success
    controls: dict[str, Success]
    strata: list[Stratum]
    outcomes: Tensor


def measure_patch(
    model: Model,
    images: Tensor,
    labels: Tensor,
    target: int | None,
    patch: Tensor,
    cover: Tensor,
    region: Region,
    conditions: Conditions | None = None,
    *,
    draws: int = 1,
    boxes: Tensor | None = None,
    controls: bool = True,
    bins: int = 3,
    batch: int = 256,
    seed: int = 1,
) -> PatchMeasurement:
    """Success of a patch (C, h, w), or of one per image (N, C, h, w), on images (N, C, H, W) of the source class.

    Every image is shown ``draws`` times, each with its own placement and conditions, without and with the patch and
    the controls. ``seed`` should be another than the one the patch was made with. Raises InputError for input that
    does not fit.
    """
    show = _Show.of(model, images, labels, target, region, cover, conditions, boxes, draws, batch, seed)
    if patch.dim() == 4 and len(patch) != len(images):
        raise InputError(f"{len(patch)} patches do not fit {len(images)} images: give one for all or one for each")
    with torch.no_grad(), evaluating(model):
        counted = show.counted()
        shown = show.outcomes(patch.to(images), counted)
        others = {
            name: show.outcomes(control(name, images.shape[1], cover.shape, seed).to(images), counted)
            for name in (CONTROLS if controls else ())
        }
    read = _mean(counted.float().mean(1))
    assert read is not None
    return PatchMeasurement(
        images=len(images),
        draws=draws,
        read=read,
        patch=show.success(shown, counted),
        controls={name: show.success(found, counted) for name, found in others.items()},
        strata=show.strata(shown, counted, bins),
        outcomes=torch.cat([counted[..., None], shown], dim=2).cpu(),
    )


def placement_map(
    model: Model,
    images: Tensor,
    labels: Tensor,
    target: int | None,
    patch: Tensor,
    cover: Tensor,
    region: Anywhere,
    conditions: Conditions | None = None,
    *,
    grid: int = 8,
    boxes: Tensor | None = None,
    batch: int = 256,
    seed: int = 1,
) -> tuple[Tensor, Tensor]:
    """(success (grid, grid), middles (grid,)): the share misled with the patch's middle at (middles[x], middles[y]).

    The patch is upright and at scale 1; the middles, in the unit square, run from edge to edge as far as it fits.
    """
    half = region.side / 2
    middles = torch.linspace(half, 1 - half, grid)
    rates = torch.zeros(grid, grid)
    show = _Show.of(model, images, labels, target, region, cover, conditions, boxes, 1, batch, seed)
    with torch.no_grad(), evaluating(model):
        counted = show.counted()  # wherever the patch lies
        for row, y in enumerate(middles.tolist()):
            for column, x in enumerate(middles.tolist()):
                there = replace(show, region=region.at((x, y)))
                found = there.success(there.outcomes(patch.to(images), counted), counted)
                rate = found.untargeted if target is None else found.targeted
                rates[row, column] = float("nan") if rate is None else rate.value
    return rates, middles


def control(name: str, channels: int, size: torch.Size | tuple[int, ...], seed: int = 0) -> Tensor:
    """A picture (channels, h, w) to fill a patch's area with: ``noise``, ``grey`` or ``sticker``.

    The sticker is what is really stuck to signs: a white label with a dark border, a colored disc and a line of
    "lettering".
    """
    height, width = size[-2:]
    if name == "grey":
        return torch.full((channels, height, width), 0.5)
    if name == "noise":
        return uniform(torch.tensor([seed]), 3, (channels, height, width))[0]
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    label = torch.full((3, height, width), 0.95)
    border = torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y)) < 0.06
    disc = (x - 0.5).square() + (y - 0.4).square() < 0.22**2
    line = ((y - 0.78).abs() < 0.06) & ((x - 0.5).abs() < 0.34) & ((x * 14).long() % 3 != 2)
    for where, color in ((border | line, (0.1, 0.1, 0.12)), (disc, (0.1, 0.35, 0.7))):
        label[:, where] = torch.tensor(color)[:, None]
    return label if channels == 3 else label.mean(0, keepdim=True).expand(channels, -1, -1)


@dataclass(frozen=True)
class _Show:
    """The same images under the same draws, with whatever lies on them."""

    model: Model
    images: Tensor
    labels: Tensor
    target: int | None
    region: Region
    conditions: Conditions
    boxes: Tensor
    cover: Tensor
    draws: int
    batch: int
    seed: int

    @staticmethod
    def of(
        model: Model, images: Tensor, labels: Tensor, target: int | None, region: Region, cover: Tensor,
        conditions: Conditions | None, boxes: Tensor | None, draws: int, batch: int, seed: int,
    ) -> _Show:  # fmt: skip
        """What is given, checked. Raises InputError."""
        labels = check_source(images, labels, target)
        framed = whole(images) if boxes is None else check_boxes(boxes, images)
        return _Show(
            model, images.detach(), labels, target, region, conditions or Conditions(), framed, cover.to(images), draws,
            batch, seed,
        )  # fmt: skip

    def counted(self) -> Tensor:
        """Which draws count, (images, draws) bool: the unpatched image is read right in them."""
        return self.readings(None) == self.labels[:, None]

    @cached_property
    def seeds(self) -> Tensor:
        return image_seeds(self.images, self.seed)

    def readings(self, patch: Tensor | None) -> Tensor:
        """Predicted classes, (images, draws); -1 where the model gives a NaN."""
        seeds, n = self.seeds, len(self.images)
        read = torch.empty(n, self.draws, dtype=torch.long, device=self.images.device)
        for turn in range(self.draws):
            for start in range(0, n, self.batch):
                rows = slice(start, start + self.batch)
                seen = self.images[rows]
                if patch is not None:
                    boxes = self.boxes[rows]
                    corners = in_pixels(self.region.draw(seeds[rows], turn).corners, boxes)
                    light = light_on(seen, boxes) if self.conditions.relit else None
                    seen = paste(seen, patch if patch.dim() == 3 else patch[rows], self.cover, corners, light)
                logits = self.model(apply(seen, self.conditions.draw(seeds[rows], turn)))
                read[rows, turn] = logits.argmax(1).masked_fill(logits.isnan().any(1), -1)
        return read

    def outcomes(self, patch: Tensor, counted: Tensor) -> Tensor:
        """(images, draws, 2) bool: read as the target, read as anything but the label; False where not counted."""
        read = self.readings(patch)
        hit = torch.zeros_like(counted) if self.target is None else read == self.target
        missed = (read != self.labels[:, None]) & (read >= 0)
        return torch.stack([hit & counted, missed & counted], dim=2)

    def success(self, outcomes: Tensor, counted: Tensor) -> Success:
        weights = counted.sum(1)
        some = weights > 0
        shares = outcomes.sum(1)[some] / weights[some][:, None]
        targeted = None if self.target is None else _mean(shares[:, 0])
        return Success(targeted, _mean(shares[:, 1]), int(weights.sum()))

    def strata(self, outcomes: Tensor, counted: Tensor, bins: int) -> list[Stratum]:
        found: list[Stratum] = []
        for name, values in self._drawn().items():
            low, high = float(values.min()), float(values.max())
            if high - low < 1e-6 or bins < 2:
                continue
            edges = torch.linspace(low, high, bins + 1).tolist()
            for index in range(bins):
                inside = (values >= edges[index]) & ((values < edges[index + 1]) | (index == bins - 1)) & counted
                kept = outcomes & inside[..., None]
                found.append(Stratum(name, edges[index], edges[index + 1], self.success(kept, inside)))
        return found

    def _drawn(self) -> dict[str, Tensor]:
        """What was drawn for each image and draw, (images, draws), by name."""
        seeds = self.seeds
        drawn: list[Drawn] = [self.conditions.draw(seeds, turn) for turn in range(self.draws)]
        placed: list[Placement] = [self.region.draw(seeds, turn) for turn in range(self.draws)]
        named = {"scale": torch.stack([place.scale for place in placed], 1)}
        for name in ("distance", "brightness"):
            named[name] = torch.stack([getattr(one, name) for one in drawn], 1)
        named["angle"] = torch.stack([one.yaw.abs() for one in drawn], 1)
        named["rotation"] = torch.stack([(p.rotation + d.roll).abs() for p, d in zip(placed, drawn, strict=True)], 1)
        return named


def _mean(shares: Tensor) -> MeanRate | None:
    return mean_rate(float(shares.double().sum()), len(shares)) if len(shares) else None
