"""The geometry of norm balls inside the box [0, 1]: how long a change is, the way into the ball, random points.

All functions take images of shape (N, C, H, W) (or any (N, ...)), values in [0, 1], and eps as one number or one per
image, shape (N,). The l0 norm counts changed values (pixel times channel), not pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from robust import randomness

TOLERANCE = 1e-6
_TINY = 1e-12


def per_image(value: float | Tensor, images: Tensor) -> Tensor:
    """``value`` as a tensor of shape (N, 1, ..., 1) that broadcasts over ``images``."""
    tensor = torch.as_tensor(value, dtype=images.dtype, device=images.device)
    return tensor.reshape(-1, *[1] * (images.dim() - 1)) if tensor.dim() else tensor.reshape([1] * images.dim())


def _as_column(value: float | Tensor, flat: Tensor) -> Tensor:
    return per_image(value, flat).expand(flat.shape[0], 1)


class Norm(ABC):
    """The geometry of one norm ball intersected with the box [0, 1]."""

    name: str

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation (N, ...), as (N,)."""

    @abstractmethod
    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """The points brought into the ball around ``images`` and the box. Points inside come back unchanged."""

    @abstractmethod
    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """A random point of ball and box for each image; ``seeds`` (N,) int64, see :mod:`robust.randomness`."""

    @abstractmethod
    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        """The points moved by ``size`` in this norm along the steepest ascent of a function with this gradient."""

    def ascend(
        self, gradient: Tensor, points: Tensor, images: Tensor, eps: float | Tensor, size: float | Tensor
    ) -> Tensor:
        """One step of projected ascent: points of the ball moved by ``size`` along the gradient, then back into it."""
        return self.project(self.steepest(gradient, points, size), images, eps)

    def into(self, images: Tensor, eps: float | Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`project` for many points around the same images."""
        return lambda points: self.project(points, images, eps)

    def snap(self, eps: Tensor, images: Tensor) -> Tensor:
        """The largest length, at most ``eps`` (N,), that a change of these images can have."""
        return eps

    def contains(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """Whether each point lies in ball and box to 1e-6, as (N,) bool. NaN lies outside."""
        radius = per_image(eps, images).flatten(1).squeeze(1) if images.dim() > 1 else torch.as_tensor(eps)
        near = self.length(points - images) <= radius * (1 + TOLERANCE) + TOLERANCE
        flat = points.flatten(1)
        return near & (flat.amin(1) >= -TOLERANCE) & (flat.amax(1) <= 1 + TOLERANCE)


class Linf(Norm):
    name = "linf"

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        return self.into(images, eps)(points)

    def into(self, images: Tensor, eps: float | Tensor) -> Callable[[Tensor], Tensor]:
        radius = per_image(eps, images)
        low, high = (images - radius).clamp_(0, 1), (images + radius).clamp_(0, 1)
        return lambda points: points.clamp(low, high)

    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """Uniform in the ball, then clipped to the box."""
        noise = randomness.uniform(seeds, stream, images.shape[1:], images.dtype)
        return self.project(noise.mul_(2).sub_(1).mul_(per_image(eps, images)).add_(images), images, eps)

    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        return torch.addcmul(points, gradient.sign(), per_image(size, points))


class L2(Norm):
    name = "l2"

    def length(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """Scaled onto the ball, then clipped to the box, which only brings points nearer to the image."""
        delta = points - images
        length = per_image(self.length(delta), images)
        scale = (per_image(eps, images) / length.clamp_min(_TINY)).clamp_max(1)
        return torch.where(scale < 1, images + delta * scale, points).clamp(0, 1)

    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """Uniform in the ball, then clipped to the box."""
        noise = randomness.normal(seeds, stream, images.shape[1:], images.dtype)
        radius = randomness.uniform(seeds, stream + 1, (1,), images.dtype) ** (1 / math.prod(images.shape[1:]))
        unit = noise / per_image(self.length(noise), images).clamp_min(_TINY)
        return self.project(images + unit * per_image(radius.squeeze(1), images) * per_image(eps, images), images, eps)

    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        gradient = gradient.nan_to_num()  # one value that is no number must not stop the image
        # Scaled by its largest value first: the square of a tiny gradient is no float32 number.
        scaled = gradient / per_image(gradient.flatten(1).abs().amax(1), points).clamp_min(1e-38)
        unit = scaled / per_image(self.length(scaled), points).clamp_min(_TINY)
        return points + unit * per_image(size, points)


class L1(Norm):
    name = "l1"

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """The nearest point (in l2) of the intersection of ball and box.

        Source: Croce and Hein, "Mind the box", ICML 2021, section 2.
        """
        x, moved = images.flatten(1), points.flatten(1)
        delta, radius = moved - x, _as_column(eps, x)
        moved = moved.clamp(0, 1)
        rows, columns = (delta != 0).nonzero(as_tuple=True)
        if 4 * len(rows) >= delta.numel():
            return _nearest(x, delta, moved, radius).view_as(images)
        # Few values differ, as is usual in l1: those alone, side by side.
        counts = rows.bincount(minlength=len(x))
        places = torch.arange(len(rows), device=x.device) - (counts.cumsum(0) - counts)[rows]

        def few(values: Tensor) -> Tensor:
            side = values.new_zeros(len(values), _most(counts))
            side[rows, places] = values[rows, columns]
            return side

        moved[rows, columns] = _nearest(few(x), few(delta), few(moved), radius)[rows, places]
        return moved.view_as(images)

    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """Uniform in the ball (normalized exponentials with random signs), then projected into the box."""
        shape = images.shape[1:]
        exponentials = -torch.log1p(-randomness.uniform(seeds, stream, shape, torch.float64))
        rest = -torch.log1p(-randomness.uniform(seeds, stream + 1, (1,), torch.float64))
        total = exponentials.flatten(1).sum(1) + rest.squeeze(1)
        signs = randomness.uniform(seeds, stream + 2, shape, torch.float64).sub_(0.5).sign()
        unit = (exponentials * signs / per_image(total, exponentials)).to(images.dtype)
        return self.project(images + unit * per_image(eps, images), images, eps)

    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        """The exact maximizer of the linear function in ball and box: the largest gradients filled to the box first."""
        g, x = gradient.nan_to_num().flatten(1), points.flatten(1)
        length = _as_column(size, x)
        count = 2 * _most(length.clamp_max(x.shape[1]).ceil()) + 32
        while True:
            # As many of the largest gradients as it takes to use the size up.
            count = x.shape[1] if 2 * count > x.shape[1] else count
            height, order = g.abs().topk(count, dim=1)
            slope = g.gather(1, order)
            before = x.gather(1, order)
            room = torch.where(slope >= 0, 1 - before, before).clamp_min(0) * (height > 0)
            if count == x.shape[1] or bool(((room.sum(1, keepdim=True) >= length) | (height[:, -1:] == 0)).all()):
                break
            count *= 4
        left = length - (room.cumsum(1) - room)
        moved = before + slope.sign() * torch.minimum(room, left.clamp_min(0))
        return x.scatter(1, order, moved).view_as(points)


class L0(Norm):
    name = "l0"

    def length(self, delta: Tensor) -> Tensor:
        return (delta.flatten(1) != 0).sum(1).to(delta.dtype)

    def project(self, points: Tensor, images: Tensor, eps: float | Tensor) -> Tensor:
        """Keeps the eps largest changes (inside the box) of each image and undoes the rest."""
        x = images.flatten(1)
        delta = points.flatten(1).clamp(0, 1) - x
        kept = _largest(delta.abs(), _as_column(eps, x)) & (delta != 0)
        return torch.where(kept, points.flatten(1).clamp(0, 1), x).view_as(images)

    def random(self, images: Tensor, eps: float | Tensor, seeds: Tensor, stream: int) -> Tensor:
        """eps random values of each image, drawn uniformly from [0, 1]."""
        x = images.flatten(1)
        order = randomness.uniform(seeds, stream, x.shape[1:], x.dtype)
        values = randomness.uniform(seeds, stream + 1, x.shape[1:], x.dtype)
        return torch.where(_largest(order, _as_column(eps, x)), values, x).view_as(images)

    def snap(self, eps: Tensor, images: Tensor) -> Tensor:
        return eps.floor()

    def steepest(self, gradient: Tensor, points: Tensor, size: float | Tensor) -> Tensor:
        """The exact maximizer of the linear function: the ``size`` values with most to gain go to the box's end."""
        g, x = gradient.nan_to_num().flatten(1), points.flatten(1)
        ends = torch.where(g > 0, torch.ones_like(x), torch.where(g < 0, torch.zeros_like(x), x))
        gain = g * (ends - x)
        return torch.where(_largest(gain, _as_column(size, x)) & (gain > 0), ends, x).view_as(points)


def _largest(values: Tensor, count: Tensor) -> Tensor:
    """Marks the ``count`` largest of each row, of equal ones the first; count (N, 1) is rounded down."""
    count = count.nan_to_num(0.0).clamp(0, values.shape[1]).floor().long()
    most = _most(count)
    if most == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = values.topk(most, dim=1).values.gather(1, (count - 1).clamp_min(0))
    marked = (values >= least) & (count > 0)
    if bool((marked.sum(1, keepdim=True) == count).all()):
        return marked
    above = values > least
    tied = marked & ~above
    return (above & marked) | (tied & (tied.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _most(counts: Tensor) -> int:
    return int(counts.nan_to_num().max()) if len(counts) else 0


def _nearest(x: Tensor, delta: Tensor, moved: Tensor, radius: Tensor) -> Tensor:
    """The nearest points of ball and box to ``x + delta``, all (N, D), radius (N, 1); ``moved``: of the box alone."""
    room = torch.where(delta >= 0, 1 - x, x).clamp_min(0)
    size = delta.abs()
    outside = ~(torch.minimum(size, room).sum(1) <= radius.squeeze(1))
    if not bool(outside.any()):
        return moved
    x, size, room, radius, sign = x[outside], size[outside], room[outside], radius[outside], delta[outside].sign()
    length = torch.minimum((size - _threshold(size, room, radius)).clamp_min(0), room)
    # Rounding of the threshold must not push the sum over the radius.
    length = length * (radius / length.sum(1, keepdim=True).clamp_min(_TINY)).clamp_max(1)
    return moved.index_copy(0, outside.nonzero().squeeze(1), (x + sign * length).clamp(0, 1))


def _threshold(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The t >= 0 with sum_i clamp(size_i - t, 0, room_i) = radius, row by row.

    The sum falls with t, linearly between breakpoints, so Newton's steps end on the exact t once they reach its piece;
    where one would leave the interval known to hold t, the interval is halved instead. Sorting the breakpoints takes
    many times as long. Once no step moves more than double precision can tell apart, t is found.
    """
    size, room, target = size.double(), room.double(), radius.double()
    low, high = torch.zeros_like(target), size.amax(1, keepdim=True)
    at, near = low, 1e-14 * high.clamp_max(1)
    for _ in range(_NEWTON):
        left = size - at
        excess = left.clamp_min(0).minimum(room).sum(1, keepdim=True) - target
        slope = ((left > 0) & (left < room)).sum(1, keepdim=True)
        low, high = torch.where(excess >= 0, at, low), torch.where(excess <= 0, at, high)
        step = at + excess / slope.clamp_min(1)
        usable = (step >= low) & (step <= high) & (slope > 0)
        previous, at = at, torch.where(excess == 0, at, torch.where(usable, step, (low + high) / 2))
        if bool(((at - previous).abs() <= near).all()):
            break
    return at.to(radius.dtype)


_NEWTON = 25
