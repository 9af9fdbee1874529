"""What a printer can print and a camera can see: non-printability, total variation, printable colors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from robust.errors import InputError

# sRGB of the solid inks of coated offset paper (ISO 12647-2) and of their overprints: what paper and inks reflect.
_PAPER, _BLACK = (1.0, 1.0, 1.0), (0.11, 0.11, 0.11)
_INKS = {
    (0, 0, 0): _PAPER, (1, 0, 0): (0.0, 0.62, 0.88), (0, 1, 0): (0.90, 0.0, 0.49), (0, 0, 1): (1.0, 0.93, 0.0),
    (1, 1, 0): (0.19, 0.15, 0.51), (1, 0, 1): (0.0, 0.59, 0.25), (0, 1, 1): (0.89, 0.02, 0.07),
    (1, 1, 1): (0.22, 0.20, 0.20),
}  # fmt: skip


def default_palette(levels: int = 4) -> Tensor:
    """Colors that a four-color press prints, (levels^3 + 1, 3) in [0, 1]: each ink at ``levels`` coverages, and black.

    The color of a halftone is the mean of its inks' overprints, weighted by the shares that fall on each other.
    Source: Neugebauer (1937) with Demichel's weights.
    """
    steps = torch.linspace(0, 1, levels)
    coverage = torch.cartesian_prod(steps, steps, steps)
    colors = torch.zeros(len(coverage), 3)
    for inks, color in _INKS.items():
        printed = torch.tensor(inks, dtype=torch.bool)
        weight = torch.where(printed, coverage, 1 - coverage).prod(1)
        colors += weight[:, None] * torch.tensor(color)
    return torch.cat([colors, torch.tensor([_BLACK])])


def load_palette(path: str | Path) -> Tensor:
    """The colors (K, 3) in a text file of one ``red,green,blue`` a line, in [0, 1] or 0 to 255.

    Raises InputError where the file cannot be read as that.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such palette; give a text file with one red,green,blue a line")
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        colors = torch.tensor([[float(value) for value in line.split(",")] for line in lines])
    except (ValueError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{file}: not a palette; give one red,green,blue a line") from error
    if colors.dim() != 2 or colors.shape[1] != 3 or not bool((colors >= 0).all()):
        raise InputError(f"{file}: not a palette; give one red,green,blue a line")
    scaled = colors / 255 if bool((colors > 1).any()) else colors
    if bool((scaled > 1).any()):
        raise InputError(f"{file}: a color exceeds 255; give red,green,blue in [0, 1] or 0 to 255")
    return scaled


def non_printability(patch: Tensor, cover: Tensor, palette: Tensor) -> Tensor:
    """Mean distance of the patch's texels (..., 3, h, w) to the nearest palette color, one number per patch (...,).

    Source: Sharif et al., CCS 2016, section 4.3, with the nearest color in place of the product over colors, which
    vanishes as soon as there are many.
    """
    texels = patch.movedim(-3, -1)
    squares = (texels[..., None, :] - palette.to(patch)).square().sum(-1).amin(-1)
    return _mean((squares + 1e-8).sqrt(), cover)


def total_variation(patch: Tensor, cover: Tensor) -> Tensor:
    """Mean difference of neighboring texels inside the cover, of patches (..., C, h, w): (...,).

    Source: Mahendran and Vedaldi, CVPR 2015, with beta = 1.
    """
    down = (patch[..., 1:, :] - patch[..., :-1, :]).abs().mean(-3)
    right = (patch[..., 1:] - patch[..., :-1]).abs().mean(-3)
    return _mean(down, cover[1:] * cover[:-1]) + _mean(right, cover[:, 1:] * cover[:, :-1])


def printed(patch: Tensor, palette: Tensor) -> Tensor:
    """The patch (..., 3, h, w) with each texel in the palette's nearest color."""
    texels = patch.movedim(-3, -1)
    nearest = (texels[..., None, :] - palette.to(patch)).square().sum(-1).argmin(-1)
    return palette.to(patch)[nearest].movedim(-1, -3)


def _mean(values: Tensor, cover: Tensor) -> Tensor:
    weights = cover.to(values)
    return (values * weights).sum((-2, -1)) / weights.sum().clamp_min(1e-6)
