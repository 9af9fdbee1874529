"""Where a patch may lie: anywhere in the frame, or on the sign, inside a mask.

A region lives in a frame of its own, the unit square. Without boxes that frame is the whole image; with boxes it is
each image's own box, such as the one a detector draws around the sign, so that a share of the sign's area stays that
share whatever the sign's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.errors import InputError, unknown
from robust.randomness import uniform

Size = tuple[int, int]
SHAPES = ("square", "circle")


@dataclass(frozen=True)
class Placement:
    """Where each image's patch lies.

    corners: (N, 4, 2), x and y of the texture's corners in the unit square, clockwise from its top left.
    scale: (N,) linear size beside the region's own; rotation: (N,) degrees.
    """

    corners: Tensor
    scale: Tensor
    rotation: Tensor

    def __getitem__(self, index: Tensor | slice) -> Placement:
        return Placement(self.corners[index], self.scale[index], self.rotation[index])


@dataclass(frozen=True)
class Anywhere:
    """A patch at a random place of the frame, wholly inside it (Brown et al., 2017).

    area: share of the frame that the patch covers at scale 1; shape: ``square`` or ``circle``;
    scale: range of its linear size; rotation: largest turn to either side, in degrees;
    center: its middle (x, y) in the unit square where it always sits at one place.
    """

    area: float = 0.05
    shape: str = "square"
    scale: tuple[float, float] = (0.8, 1.2)
    rotation: float = 20.0
    center: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown("patch shape", self.shape, SHAPES)
        if not (0 < self.area < 1):
            raise InputError(f"the patch's area must be a share between 0 and 1 such as 5%, not {self.area:g}")
        low, high = self.scale
        if not (0 < low <= high):
            raise InputError(f"the patch's scale must be a range such as (0.8, 1.2), not {self.scale}")
        if not (0 <= self.rotation <= 180):
            raise InputError(f"the patch's rotation must lie in 0 to 180 degrees, not {self.rotation:g}")
        if self._reach(high, self.rotation) > 1:
            raise InputError(
                f"a patch of {self.area:.3g} of the image at scale {high:g}, turned by {self.rotation:g} degrees, is "
                "larger than the image: lower its area, scale or rotation"
            )

    @property
    def side(self) -> float:
        """Side or diameter at scale 1, as a share of the frame's side."""
        return math.sqrt(self.area) if self.shape == "square" else math.sqrt(4 * self.area / math.pi)

    def cover(self, size: Size) -> Tensor:
        """What of the texture is patch, (h, w) in [0, 1], for images of ``size`` (H, W)."""
        h, w = (max(2, round(self.side * self.scale[1] * side)) for side in size)
        return torch.ones(h, w) if self.shape == "square" else circle(h, w)

    def draw(self, seeds: Tensor, turn: int = 0) -> Placement:
        """A placement per seed (N,); another ``turn`` gives independent ones."""
        numbers = uniform(seeds, 8 * turn + 7, (4,))
        low, high = self.scale
        scale = low + (high - low) * numbers[:, 0]
        rotation = self.rotation * (2 * numbers[:, 1] - 1)
        half = self.side * scale / 2
        angle = rotation.deg2rad()
        reach = half if self.shape == "circle" else half * (angle.cos().abs() + angle.sin().abs())
        if self.center is None:
            middle = reach[:, None] + (1 - 2 * reach[:, None]) * numbers[:, 2:]
        else:
            middle = torch.tensor(self.center, device=seeds.device).expand(len(seeds), 2)
        return Placement(squares(middle, half, angle), scale, rotation)

    def at(self, center: tuple[float, float]) -> Anywhere:
        """The same patch always at one place, upright and at scale 1."""
        return replace(self, center=center, scale=(1.0, 1.0), rotation=0.0)

    def _reach(self, scale: float, rotation: float) -> float:
        """Largest extent of the turned patch."""
        if self.shape == "circle":
            return self.side * scale
        angle = math.radians(min(rotation, 45.0))
        return self.side * scale * (math.cos(angle) + math.sin(angle))


@dataclass(frozen=True)
class OnSign:
    """A patch or stickers that lie still on the sign, inside a mask (Eykholt et al., CVPR 2018).

    mask: (H, W) of any size, bool or numbers in [0, 1]: what of the region's frame may be changed. It need not have the
    images' size; the texture has its own, and is scaled with it.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = self.mask.detach().float()
        if mask.dim() != 2:
            raise InputError(f"the mask must have two dimensions (height, width), not the shape {tuple(mask.shape)}")
        if not (mask.min() >= 0 and mask.max() <= 1):
            raise InputError("the mask's values must lie in 0 to 1: divide 8-bit masks by 255")
        if not bool((mask > 0).any()):
            raise InputError("the mask is empty: mark the pixels that the patch may change")
        object.__setattr__(self, "mask", mask)

    @property
    def area(self) -> float:
        """Share of the frame."""
        return float(self.mask.mean())

    def cover(self, size: Size) -> Tensor:
        """What of the texture is patch: the mask itself. Raises InputError where its proportions are not theirs."""
        h, w = self.mask.shape
        if abs(h / w - size[0] / size[1]) > 0.02 * size[0] / size[1]:
            raise InputError(f"the mask's {h}x{w} pixels do not fit images of {size[0]}x{size[1]}: crop or scale it")
        return self.mask

    def draw(self, seeds: Tensor, turn: int = 0) -> Placement:
        ones = torch.ones(len(seeds), device=seeds.device)
        middle = torch.full((len(seeds), 2), 0.5, device=seeds.device)
        return Placement(squares(middle, ones / 2, ones * 0), ones, ones * 0)


Region = Anywhere | OnSign


def squares(middle: Tensor, half: Tensor, angle: Tensor) -> Tensor:
    """Corners (N, 4, 2) of squares around ``middle`` (N, 2) with half sides (N,), turned by ``angle`` (N,) radians."""
    signs = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=middle.device)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = signs[:, 0] * half[:, None], signs[:, 1] * half[:, None]
    return middle[:, None] + torch.stack([x * cos - y * sin, x * sin + y * cos], dim=2)


def octagon(height: int, width: int, share: float = 0.8) -> Tensor:
    """A stop sign's outline, (height, width) with soft edges, ``share`` of the frame wide."""
    x, y = _grid(height, width)
    half = share / 2
    corner = half * math.sqrt(2)
    return _soft(half - torch.maximum(x.abs(), y.abs()), height) * _soft(corner - (x.abs() + y.abs()), height)


def circle(height: int, width: int, share: float = 1.0) -> Tensor:
    """A disc with soft edges, ``share`` of the frame in diameter."""
    x, y = _grid(height, width)
    return _soft(share / 2 - (x.square() + y.square()).sqrt(), height)


def rectangle(
    height: int, width: int, area: float, center: tuple[float, float] = (0.5, 0.5), aspect: float = 1.0
) -> Tensor:
    """A rectangle of ``area`` (share of the frame), ``aspect`` times as wide as high, its middle at ``center`` (x, y).

    Its edge pixels are covered in part, so that the area is met exactly. Raises InputError where it leaves the frame.
    """
    h, w = math.sqrt(area / aspect), math.sqrt(area * aspect)
    x0, y0 = center[0] - w / 2, center[1] - h / 2
    if area <= 0 or min(x0, y0) < -1e-6 or max(x0 + w, y0 + h) > 1 + 1e-6:
        raise InputError(
            f"a patch of {area:.3g} of the frame, {w:.2f} x {h:.2f} around ({center[0]:g}, {center[1]:g}), is larger "
            "than what holds it: lower its area or move it"
        )
    return _span(height, y0, y0 + h)[:, None] * _span(width, x0, x0 + w)[None]


def stickers(mask: Tensor, area: float, count: int = 2, aspect: float = 3.0) -> Tensor:
    """``count`` equal rectangles inside a sign's ``mask`` (H, W), together ``area`` of the sign's own area.

    They lie one under the other, spread over the sign's height, as wide as ``aspect`` times their height (less where
    the sign is too narrow): with two, above and below a stop sign's word. Raises InputError where they do not fit.
    """
    height, width = mask.shape
    rows, columns = (mask > 0.5).any(1).nonzero(), (mask > 0.5).any(0).nonzero()
    if not (0 < area < 1) or count < 1 or not len(rows):
        raise InputError(
            f"stickers need a sign, a share of its area between 0 and 1 and a count, not {area:g}, {count}"
        )
    each = float(mask.mean()) * area / count
    top, bottom = float(rows[0]) / height, float(rows[-1] + 1) / height
    middle = float(columns[0] + columns[-1] + 1) / 2 / width
    for wide in (aspect, 2.5, 2.0, 1.5, 1.0, 0.7, 0.5):
        high = math.sqrt(each / wide)
        if wide > aspect or count * high > bottom - top:
            continue
        # The outer ones keep half a sticker's height from the edge, the rest lie evenly between them.
        margin = min(high, (bottom - top - count * high) / 2)
        first, last = top + margin + high / 2, bottom - margin - high / 2
        centers = (
            [first + (last - first) * i / max(1, count - 1) for i in range(count)]
            if count > 1
            else [(top + bottom) / 2]
        )
        try:
            found = torch.stack([rectangle(height, width, each, (middle, y), wide) for y in centers]).sum(0)
        except InputError:
            continue
        if float(found.max()) <= 1.0001 and float((found * (mask < 0.5)).sum()) < 0.02 * float(found.sum()):
            return found.clamp(max=1)
    raise InputError(
        f"{count} sticker(s) on together {area:.3g} of the sign's area do not fit on it: lower the area or the count"
    )


def from_file(path: str | Path, size: Size | None = None) -> Tensor:
    """The mask in a picture (white: may be changed) or an .npy array, (H, W) in [0, 1], scaled to ``size`` if given.

    Raises InputError where the file cannot be read or marks nothing.
    """
    import numpy as np
    from PIL import Image

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such mask file; name a picture or an .npy array")
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False).astype(np.float32)
            array = array.mean(-1) if array.ndim == 3 else array
        else:
            array = np.asarray(Image.open(file).convert("L"), np.float32) / 255
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable mask; give a picture or an .npy array of shape (H, W)") from error
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise InputError(f"{file}: a mask has the shape (H, W), not {array.shape}")
    mask = torch.from_numpy(np.ascontiguousarray(array / max(1.0, float(array.max()))))
    if size is not None and tuple(mask.shape) != size:
        mask = F.interpolate(mask[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    if not bool((mask > 0).any()):
        raise InputError(f"{file}: the mask is empty; paint white what the patch may change")
    return mask.clamp(0, 1)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y of the pixels' middles, from -1/2 to 1/2."""
    y, x = (torch.arange(height) + 0.5) / height - 0.5, (torch.arange(width) + 0.5) / width - 0.5
    return x.expand(height, width), y[:, None].expand(height, width)


def _soft(distance: Tensor, pixels: int) -> Tensor:
    """1 inside, 0 outside, over one pixel in between."""
    return (distance * pixels + 0.5).clamp(0, 1)


def _span(pixels: int, start: float, end: float) -> Tensor:
    """Share of each pixel, (pixels,), that lies between ``start`` and ``end`` of the unit interval."""
    edges = torch.arange(pixels + 1, dtype=torch.float64)
    inside = edges.clamp(start * pixels, end * pixels)
    return (inside[1:] - inside[:-1]).float()
