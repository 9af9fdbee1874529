"""Threat models: what the attacker may do to an image.

A norm ball of radius eps around the image inside the box [0, 1], or one square patch whose area is at most the share
eps of the image's. The geometry of both stands in :mod:`robust.norms` and :mod:`robust.patch_norm`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from robust.errors import InputError, unknown
from robust.norms import L0, L1, L2, TOLERANCE, Linf, Norm, per_image
from robust.patch_norm import Patch

__all__ = ["NORMS", "TOLERANCE", "Norm", "ThreatModel", "per_image"]

NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0(), Patch())}

_TEXT = re.compile(r"\s*([A-Za-z0-9]+)\s*:\s*([0-9.eE+-]+)\s*(?:/\s*([0-9.]+)|(%)|x\s*(\d+))?\s*")


@dataclass(frozen=True)
class ThreatModel:
    """A ball of radius ``eps`` around each image, inside the box [0, 1].

    ``norm`` is linf, l2, l1, l0 or patch; for a patch, ``eps`` is the largest share of the image's area. ``text`` is
    how the user wrote it. ``side``: the patch is given in pixels, so that ``eps`` stands for the whole image until
    :meth:`fitted` has seen an image's shape. Raises InputError for an unknown norm or an eps that is negative, not
    finite, or over 1 for linf (almost always a missing /255) and patch.
    """

    norm: str
    eps: float
    text: str = field(default="", compare=False)
    side: int | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        # repr reads back as the same number, "%g" does not.
        written = self.text or f"{self.norm}:{float(self.eps)!r}".removesuffix(".0")
        if not math.isfinite(self.eps) or self.eps < 0:
            raise InputError(f"threat {written}: eps must be a number of at least 0")
        if self.norm == "linf" and self.eps > 1:
            raise InputError(
                f"threat {written}: eps is in [0, 1] pixel units, so {self.eps:g} covers every image; "
                f"did you mean linf:{self.eps:g}/255?"
            )
        if self.norm == "l0" and self.eps != int(self.eps):
            raise InputError(f"threat {written}: an l0 eps counts changed values, so it must be whole, such as l0:20")
        if self.norm == "patch" and self.eps > 1:
            raise InputError(
                f"threat {written}: the area is a share of the image's, at most 100%; "
                f"did you mean patch:{self.eps:g}% or, in pixels, patch:{self.eps:.0f}x{self.eps:.0f}?"
            )
        object.__setattr__(self, "text", written)

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """From text such as ``linf:8/255``, ``l2:0.5``, ``l1:12``, ``l0:20``, ``patch:5%`` or ``patch:7x7`` (pixels).

        Raises InputError.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"threat {text!r}: write NORM:EPS, such as linf:8/255, l2:0.5 or patch:5%")
        norm, top, bottom, percent, other = match.groups()
        try:
            eps = float(top) / float(bottom or (100 if percent else 1))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"threat {text!r}: {top}{'/' + bottom if bottom else ''} is not a number") from None
        if norm.lower() not in NORMS:
            raise unknown("threat", norm, NORMS)
        if norm.lower() != "patch" and (percent or other):
            raise InputError(f"threat {text!r}: only a patch has an area; write {norm.lower()}:EPS, such as linf:8/255")
        if other is None:
            return cls(norm.lower(), eps, text.strip())
        if top != other or eps < 1:
            raise InputError(f"threat {text!r}: a patch is a square of whole pixels, such as patch:7x7")
        return cls("patch", 1.0, text.strip(), int(other))

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    def fitted(self, shape: tuple[int, int, int]) -> ThreatModel:
        """The same for images of this (C, H, W) shape: a side in pixels becomes a share of their area.

        Raises InputError as :meth:`check_shape` does.
        """
        self.check_shape(shape)
        return self if self.side is None else replace(self, eps=self.side**2 / (shape[1] * shape[2]), side=None)

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Raises InputError where eps covers every image of this (C, H, W) shape, or holds not one pixel of it."""
        if self.norm == "patch":
            self._check_patch(shape[1], shape[2])
            return
        values = math.prod(shape)
        widest = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": float(values)}[self.norm]
        if self.eps >= widest:
            hint = f"; did you mean {self.norm}:{self.eps:g}/255?" if self.norm != "l0" else ""
            raise InputError(
                f"threat {self.text}: no two images of shape {shape} are further apart than {widest:g} in {self.norm}, "
                f"so every model falls{hint}"
            )

    def _check_patch(self, height: int, width: int) -> None:
        if self.side is not None and self.side > min(height, width):
            raise InputError(f"threat {self.text}: the patch is larger than the images, which are {height}x{width}")
        if self.eps >= 1 and (self.side is None or self.side == height == width):
            raise InputError(f"threat {self.text}: covers the whole image ({height}x{width}), so every model falls")
        if 0 < self.eps * height * width < 1:
            raise InputError(
                f"threat {self.text}: is less than one pixel of images of {height}x{width}; "
                f"the smallest patch is {100 / (height * width):.2g}%"
            )
