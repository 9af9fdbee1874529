"""A patch pasted into images, differentiably: warped onto each image's four corners and lit like what it lies on."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.errors import InputError


def whole(images: Tensor) -> Tensor:
    """The box (N, 4) of each whole image: x0, y0, x1, y1 in pixels."""
    height, width = images.shape[-2:]
    return images.new_tensor([0, 0, width, height]).expand(len(images), 4)


def check_boxes(boxes: Tensor, images: Tensor) -> Tensor:
    """``boxes`` (N, 4) as floats on the images' device. Raises InputError for other shapes and empty boxes."""
    given = torch.as_tensor(boxes, dtype=images.dtype, device=images.device)
    if given.shape != (len(images), 4):
        raise InputError(f"boxes must have the shape ({len(images)}, 4), x0 y0 x1 y1, not {tuple(given.shape)}")
    if not bool((given[:, 2:] > given[:, :2]).all()):
        raise InputError("a box is empty: give x0 < x1 and y0 < y1 in pixels")
    return given


def in_pixels(corners: Tensor, boxes: Tensor) -> Tensor:
    """Corners (N, 4, 2) in each box's unit square as pixels of the image."""
    return boxes[:, None, :2] + corners.to(boxes.dtype) * (boxes[:, 2:] - boxes[:, :2])[:, None]


def paste(
    images: Tensor, patch: Tensor, cover: Tensor, corners: Tensor | None = None, light: Tensor | None = None
) -> Tensor:
    """Images with the patch on them, differentiable in ``patch``.

    Args:
        images: (N, C, H, W) in [0, 1].
        patch: texture (C, h, w) for all, or one per image (N, C, h, w), in [0, 1].
        cover: (h, w) in [0, 1], what of the texture is patch.
        corners: (N, 4, 2), where the texture's corners come to lie, in pixels (x, y; the image spans 0 to W, 0 to H),
            clockwise from the top left; None for the whole image with a texture of its size.
        light: (N, 2) black and white point of each image, see :func:`light_on`; None to paste the patch as it is.

    Between texels and at edges it is bilinear, so that a patch covers edge pixels in part.
    """
    textures = patch if patch.dim() == 4 else patch.expand(len(images), *patch.shape)
    alpha = cover.to(images).expand(len(images), 1, *cover.shape[-2:])
    # Colors go weighted by their cover, so that what is no patch does not leak in at its edges.
    colors = textures * alpha
    if corners is not None or cover.shape[-2:] != images.shape[-2:]:
        onto = in_pixels(_UNIT.to(images).expand(len(images), 4, 2), whole(images)) if corners is None else corners
        both = _warped(torch.cat([colors, alpha], dim=1), onto, (images.shape[-2], images.shape[-1]))
        colors, alpha = both[:, :-1], both[:, -1:]
    if light is not None:
        black, white = light[:, 0].view(-1, 1, 1, 1), light[:, 1].view(-1, 1, 1, 1)
        colors = black * alpha + colors * (white - black)
    return images * (1 - alpha) + colors


def light_on(images: Tensor, boxes: Tensor | None = None, low: float = 0.05, high: float = 0.95) -> Tensor:
    """Black and white point, (N, 2), of what lies in each box: quantiles of its pixels' brightest channel.

    A printed patch on a sign in the shade is in the shade too: its paper is no brighter than the sign's own white
    border, and its ink no darker than haze and noise leave black.
    """
    given = whole(images) if boxes is None else boxes
    height, width = images.shape[-2:]
    x, y = torch.arange(width, device=images.device) + 0.5, torch.arange(height, device=images.device) + 0.5
    inside_x = (x >= given[:, :1]) & (x <= given[:, 2:3])
    inside_y = (y >= given[:, 1:2]) & (y <= given[:, 3:])
    inside = (inside_y[:, :, None] & inside_x[:, None]).flatten(1)
    bright = torch.where(inside, images.detach().amax(1).flatten(1), torch.nan)
    points = bright.nanquantile(torch.tensor([low, high], dtype=images.dtype, device=images.device), dim=1).T
    return points.nan_to_num(1.0)


_UNIT = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def _warped(texture: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """The texture (N, C, h, w) with its corners on ``corners`` (N, 4, 2), in pixels of a frame of ``size``; else 0."""
    from kornia.geometry.transform import get_perspective_transform, warp_perspective

    own = _UNIT.to(texture) * texture.new_tensor([texture.shape[-1], texture.shape[-2]])
    # Kornia counts from the middle of the first pixel, and a margin of one empty texel makes the edges fade evenly.
    matrix = get_perspective_transform(own.expand_as(corners) + 0.5, corners.to(texture) - 0.5)
    framed = torch.nn.functional.pad(texture, (1, 1, 1, 1))
    warped: Tensor = warp_perspective(framed, matrix, size, mode="bilinear", padding_mode="zeros", align_corners=True)
    return warped
