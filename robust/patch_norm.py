"""The geometry of a patch: one square window, anywhere in the image, inside which every color value may be changed.

The length of a change is the area of the smallest square window that holds every changed pixel, as a share of the
image's area. In an image that is no square such a window may stick out, and the share be over 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robust import randomness
from robust.norms import TOLERANCE, Norm, per_image


class Patch(Norm):
    """Images are (N, C, H, W); eps is a share of the area, and a window has the largest whole side that keeps to it."""

    name = "patch"

    def length(self, delta: Tensor) -> Tensor:
        _, _, height, width = extent(delta)
        side = torch.maximum(height, width).to(delta.dtype)
        return side**2 / (delta.shape[-2] * delta.shape[-1])

    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """The nearest point (in l2): the window with most change, in squares, stays, and the rest is undone."""
        rows, columns = window_size(eps, images)
        points = points.clamp(0, 1)
        delta = points - images
        _, _, height, width = extent(delta)
        change = delta.double().nan_to_num().square().sum(1)
        kept = best_window(window_sums(change, rows, columns), rows, columns)
        inside = per_image((height <= rows) & (width <= columns), images).bool()
        return torch.where(inside | kept, points, images)

    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """A window placed uniformly over where it fits, filled with uniform color values."""
        rows, columns = window_size(eps, images)
        height, width = images.shape[2:]
        place = randomness.uniform(seeds, stream, (2,), torch.float64)
        top, left = (place[:, 0] * (height - rows + 1)).long(), (place[:, 1] * (width - columns + 1)).long()
        values = randomness.uniform(seeds, stream + 1, images.shape[1:], images.dtype)
        return torch.where(window(top, left, rows, columns, height, width), values, images)

    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        """The exact maximizer of the linear function: the window with most to gain goes to the box's ends."""
        gain, ends = gains(gradient, points)
        rows, columns = window_size(size, points)
        return torch.where(best_window(window_sums(gain.sum(1), rows, columns), rows, columns), ends, points)

    def ascend(
        self, gradient: Tensor, points: Tensor, images: Tensor, eps: float | Tensor, size: float | Tensor
    ) -> Tensor:
        """A window that has changes in it stays where it is, as far as they need it; its values move by size / eps.

        So a step of ``size`` eps may take the whole window to the ends of the box, and smaller ones go part of the way.
        """
        gain, _ = gains(gradient, points)
        rows, columns = window_size(eps, images)
        scores = window_sums(gain.sum(1), rows, columns)
        scores = scores.masked_fill(~covering(points - images, rows, columns), -torch.inf)
        share = per_image(size, images) / per_image(eps, images).clamp_min(1e-12)
        moved = (points + gradient.nan_to_num().sign() * share).clamp(0, 1)
        return torch.where(best_window(scores, rows, columns), moved, points)

    def snap(self, eps: Tensor, images: Tensor) -> Tensor:
        rows, columns = window_size(eps, images)
        side = torch.maximum(rows, columns).to(eps.dtype)
        return side**2 / (images.shape[2] * images.shape[3])


def window_size(eps: float | Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, (N,) int64 each, of the largest square window of at most the share ``eps`` of the area."""
    height, width = images.shape[2:]
    area = torch.as_tensor(eps, dtype=torch.float64, device=images.device).expand(len(images)) * height * width
    side = (area.clamp(0, max(height, width) ** 2) * (1 + TOLERANCE) + TOLERANCE).sqrt().floor().long()
    return side.clamp_max(height), side.clamp_max(width)


def extent(delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width, (N,) int64 each, of the smallest rectangle that holds every change; 0 of none."""
    changed = (delta != 0).any(1)
    top, height = _span(changed.any(2))
    left, width = _span(changed.any(1))
    return top, left, height, width


def _span(used: Tensor) -> tuple[Tensor, Tensor]:
    """The first True of each row of (N, L), and the distance to just after the last; 0 and 0 where there is none."""
    length = used.shape[1]
    places = torch.arange(length, device=used.device).expand_as(used)
    first = places.masked_fill(~used, length).amin(1)
    last = places.masked_fill(~used, -1).amax(1)
    none = last < 0
    return first.masked_fill(none, 0), (last - first + 1).masked_fill(none, 0)


def gains(gradient: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """What each value has to gain by going to the end of the box that the gradient points to, and the points there.

    Values without a gradient gain nothing and stay.
    """
    gradient = gradient.nan_to_num()
    ends = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, points)).to(points.dtype)
    return gradient.double() * (ends - points), ends


def window_sums(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """For each place of a window's upper left corner the sum of ``values`` (N, H, W) in it; -inf where it sticks out.

    ``rows`` and ``columns`` (N,) are the window's; the result is float64 (N, H, W).
    """
    height, width = values.shape[1:]
    total = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    bottom = torch.arange(height, device=values.device) + rows[:, None]
    right = torch.arange(width, device=values.device) + columns[:, None]
    band = total.gather(1, bottom.clamp_max(height)[:, :, None].expand(-1, -1, width + 1)) - total[:, :height]
    sums = band.gather(2, right.clamp_max(width)[:, None].expand(-1, height, -1)) - band[:, :, :width]
    return sums.masked_fill((bottom > height)[:, :, None] | (right > width)[:, None], -torch.inf)


def covering(delta: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """At which places of its upper left corner a window holds every change, (N, H, W) bool."""
    top, left, height, width = extent(delta)
    vertical = torch.arange(delta.shape[2], device=delta.device)
    horizontal = torch.arange(delta.shape[3], device=delta.device)
    none = ((height == 0) & (width == 0))[:, None]
    tall = (vertical <= top[:, None]) & (vertical + rows[:, None] >= (top + height)[:, None]) | none
    wide = (horizontal <= left[:, None]) & (horizontal + columns[:, None] >= (left + width)[:, None]) | none
    return tall[:, :, None] & wide[:, None]


def best_window(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The window at the place of the highest of ``scores`` (N, H, W), the first of equals; see :func:`window`."""
    place = scores.flatten(1).argmax(1)
    height, width = scores.shape[1:]
    return window(place // width, place % width, rows, columns, height, width)


def window(top: Tensor, left: Tensor, rows: Tensor | int, columns: Tensor | int, height: int, width: int) -> Tensor:
    """Which pixels of an image lie in its window, (N, 1, H, W) bool; its corner (N,), its sides (N,) or one for all."""
    vertical, horizontal = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    tall = (vertical >= top[:, None]) & (vertical < (top + rows)[:, None])
    wide = (horizontal >= left[:, None]) & (horizontal < (left + columns)[:, None])
    return (tall[:, :, None] & wide[:, None])[:, None]
