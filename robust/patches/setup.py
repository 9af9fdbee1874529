"""What a patch is made for, checked before anything is computed: classes, images, and where on the sign it may lie."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust.attacks.patch import (
    Anywhere,
    Conditions,
    OnSign,
    PatchAttack,
    Region,
    circle,
    from_file,
    layouts,
    octagon,
    stickers,
)  # fmt: skip
from robust.counting import CountedModel
from robust.data import ImageSet, load_data
from robust.errors import InputError, unknown

KINDS = ("universal", "stickers", "per-image")
# The sign's shapes, and the side of the largest upright square that lies on each, as a share of the sign's width.
SHAPES = {"octagon": math.sqrt(0.5), "circle": math.sqrt(0.5), "rectangle": 1.0}
LEAST = 8  # images of the source class, to make a patch on and to measure it on
_TURN = 10.0  # degrees by which a patch may be stuck on askew


def class_of(option: str, text: str, names: Sequence[str], classes: int) -> int:
    """The class that ``text`` names: by its name in whatever case, or by its number. Raises InputError."""
    for same in (str, str.casefold):
        found = [index for index, name in enumerate(names) if same(name) == same(text.strip())]
        if len(found) == 1:
            return found[0]
    if text.strip().isdecimal() and int(text) < classes:
        return int(text)
    raise InputError(f"{option}: {unknown('class', text, names)}")


def goal_of(target: str | None, truth: int, names: Sequence[str], classes: int) -> int | None:
    """The target's number, None without one. Raises InputError where it is unknown or the source."""
    goal = None if target is None else class_of("--target", target, names, classes)
    if goal == truth:
        raise InputError(f"--target {target}: is the source's own class; give another, or none for any other")
    return goal


@dataclass(frozen=True)
class Sources:
    """Images of the source class, (N, C, H, W) in [0, 1]: to make the patch on, and to measure it on; remarks; the name
    of the data that the former are from, None where it is the same."""

    train: Tensor
    test: Tensor
    data: ImageSet
    remarks: tuple[str, ...]
    train_name: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Of the images, (H, W)."""
        return self.test.shape[2], self.test.shape[3]


def gather(
    data: Any, train_data: Any, source: str, *, kind: str, limit: int | None, resize: tuple[int, int] | None, seed: int
) -> tuple[Sources, int]:
    """The images of the class ``source`` and its number. Without ``train_data`` a half of them makes the patch.

    Raises InputError for an unknown class, too few images, or images of different shapes.
    """
    least = LEAST // 4 if kind == "per-image" else LEAST
    if limit is not None and limit < least:
        raise InputError(f"--limit {limit}: give at least {least} images")
    held = load_data(data, resize=resize)
    number = class_of("--source", source, held.class_names, len(held.class_names))
    test, remarks, train_name = _of(held, number), [], None
    if kind == "per-image":
        if train_data is not None:
            raise InputError("--train-data: a patch per image is made on the images themselves; leave it out")
        _enough(test, source, least)
        train = test = test.limited(limit, seed)
    elif train_data is None:
        _enough(test, source, 2 * LEAST, f", {LEAST} to make the patch on and {LEAST} to measure it on")
        train = test.limited((len(test) + 1) // 2, seed)
        taken = set(_positions(train))
        test = test.take([index for index, at in enumerate(_positions(test)) if at not in taken])
        remarks.append(
            "The patch was made on a half of the images of the source class, drawn at random, and measured on the "
            "other half. If several images show one object, it may be on both sides and flatter the figures: give "
            "other images with --train-data then."
        )
    else:
        other = load_data(train_data, resize=resize)
        train_name = other.name
        if other.shape != held.shape:
            raise InputError(f"--train-data: images of shape {other.shape}, but the data has {held.shape}; resize both")
        train = _of(other, class_of(f"--train-data {other.name}", source, other.class_names, len(other.class_names)))
        _enough(train, source, LEAST)
    if kind != "per-image":
        test, shared = _without(test, train)
        if shared:
            remarks.append(f"{shared} images that the patch was made on too, to the last bit, do not measure it.")
        _enough(test, source, LEAST, " that the patch is not made on")
        test = test.limited(limit, seed)
    made_on, held_out = (part.batch(range(len(part))) for part in (train, test))
    return Sources(made_on, held_out, held, tuple(remarks), train_name), number


def _of(data: ImageSet, number: int) -> ImageSet:
    return data.take((data.labels == number).nonzero().flatten().tolist())


def _positions(data: ImageSet) -> list[int]:
    assert data.positions is not None
    return [int(position) for position in data.positions]


def _enough(data: ImageSet, source: str, least: int, why: str = "") -> None:
    if len(data) < least:
        raise InputError(
            f"{data.name}: {len(data)} image{'s' * (len(data) != 1)} of class {source!r}; give at least {least}{why}"
        )


def _without(images: ImageSet, others: ImageSet) -> tuple[ImageSet, int]:
    """The images that are not among the others, and how many are."""
    taken = set(_marks(others))
    kept = [index for index, mark in enumerate(_marks(images)) if mark not in taken]
    return (images.take(kept) if len(kept) < len(images) else images), len(images) - len(kept)


def _marks(images: ImageSet) -> list[bytes]:
    return [
        hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images.batch(range(len(images)))
    ]


@dataclass(frozen=True)
class Spot:
    """Where on the sign a patch may lie.

    region: in the frame of ``boxes``. share: of the image's side, how much that frame takes in its middle; width: how
    wide it is, in widths of the sign. area: what the patch covers of the sign's, in [0, 1]. layouts: for stickers, the
    masks among which the region is still to be chosen.
    """

    region: Region
    share: float
    width: float
    area: float
    layouts: tuple[Tensor, ...] = ()

    def on_sign(self, value: float) -> float:
        """A coordinate of the frame's unit square in that of the flat sign's."""
        return 0.5 + self.width * (value - 0.5)

    def boxes(self, images: Tensor) -> Tensor:
        """Each image's frame, (N, 4): x0, y0, x1, y1 in pixels."""
        height, width = images.shape[-2:]
        low, high = (1 - self.share) / 2, (1 + self.share) / 2
        return images.new_tensor([low * width, low * height, high * width, high * height]).expand(len(images), 4)


@dataclass(frozen=True)
class Case:
    """What a patch is made for, all of it checked: the model, the images on its device, the source's class and the
    target's, where the patch lies, how it is seen, and the optimizer's settings."""

    model: CountedModel
    sources: Sources
    truth: int
    goal: int | None
    where: Spot
    seen: Conditions
    attack: PatchAttack

    @property
    def names(self) -> Sequence[str]:
        return self.sources.data.class_names

    @property
    def size(self) -> tuple[int, int]:
        """Of the images, (H, W)."""
        return self.sources.size


def spot(
    kind: str, mask: str, area: float, sign_share: float, count: int, tried: int, size: tuple[int, int]
) -> Spot:  # fmt: skip
    """Where a patch of ``kind`` lies on a sign that takes ``sign_share`` of the image's side.

    ``mask``: the sign's shape, or for stickers a file that marks in an image of ``size`` what they may change.
    ``area``: of the sign's. ``tried``: layouts of stickers to choose from, 1 for the usual one.

    Raises InputError where they do not fit.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if not 0 < sign_share <= 1:
        raise InputError(f"--sign-share {sign_share:g}: give the share of the image's side that the sign takes, 0 to 1")
    if not 0 < area < 1:
        raise InputError(f"--area {area:g}: give a share of the sign's area such as 10%")
    if mask not in SHAPES:
        if not Path(mask).exists() and "." not in mask and "/" not in mask:
            raise unknown("mask", mask, SHAPES)
        if kind != "stickers":
            raise InputError(f"--mask {mask}: a file marks where stickers lie; give it with --kind stickers")
        region = OnSign(from_file(mask))
        region.cover(size)
        if region.mask.shape[0] > size[0]:
            region = OnSign(from_file(mask, size))
        covered = region.area / (float(flat_sign("octagon").mean()) * sign_share**2)
        return Spot(region, 1.0, 1 / sign_share, covered)
    if kind == "stickers":
        # No finer than the sign in the image: what falls between pixels would never be optimized.
        sign = flat_sign(mask, max(16, round(sign_share * min(size))))
        if tried < 1:
            raise InputError(f"--layouts {tried}: give at least 1")
        usual, masks = stickers(sign, area, count), layouts(sign, area, count) if tried > 1 else []
        # Evenly through all of them: neighbors in the list lie alike.
        chosen = masks[:: max(1, -(-len(masks) // max(1, tried - 1)))]
        return Spot(
            OnSign(usual), sign_share, 1.0, float(usual.mean() / sign.mean()), (usual, *chosen) if chosen else ()
        )  # fmt: skip
    # The frame is the largest square on the sign, so that the patch is on the sign wherever it lies.
    inner = SHAPES[mask]
    whole = area * float(flat_sign(mask).mean()) / inner**2
    try:
        anywhere = Anywhere(whole, scale=(1.0, 1.0), rotation=_TURN)
    except InputError as error:
        raise InputError(
            f"--area {area:.0%}: a patch of that size, turned by up to {_TURN:g} degrees, is larger than what fits on "
            "the sign; lower it"
        ) from error
    return Spot(anywhere, sign_share * inner, inner, area)


def flat_sign(shape: str, side: int = 64) -> Tensor:
    """A sign that fills its square, (side, side) in [0, 1]."""
    if shape == "rectangle":
        return torch.ones(side, side)
    return octagon(side, side, 1.0) if shape == "octagon" else circle(side, side)
