"""What lies between a sign and its picture, as a stated distribution: geometry, light, optics, sensor, compression.

Expectation over transformation (Athalye et al., ICML 2018) with one draw per image. Every number belongs to the image's
own seed, so the same seed makes the same picture in whatever batch, on CPU and CUDA alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.errors import InputError, unknown
from robust.randomness import normal, uniform

Range = tuple[float, float]


@dataclass(frozen=True)
class Conditions:
    """Ranges from which each image's conditions are drawn, uniformly; equal ends switch a condition off.

    distance: how many times further away than in the given image; the picture is sampled that many times more coarsely
        and scaled back, as a crop of a smaller sign would be. At least 1.
    yaw, pitch: degrees by which the camera looks from the side or from above, with perspective.
    roll: in-plane rotation in degrees. zoom: size in the frame. shift: shares of the frame, both ways.
    brightness: factor. contrast: factor around middle grey. gamma: exponent.
    blur: standard deviation in pixels of the image. noise: standard deviation of the sensor's noise.
    jpeg: quality from 1 to 100, None without compression. eight_bit: round to k/255 (JPEG does so by itself).
    relit: paste the patch between the image's own black and white point, as one printed and lit like the sign.
    """

    distance: Range = (1.0, 1.0)
    yaw: Range = (0.0, 0.0)
    pitch: Range = (0.0, 0.0)
    roll: Range = (0.0, 0.0)
    zoom: Range = (1.0, 1.0)
    shift: Range = (0.0, 0.0)
    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    blur: Range = (0.0, 0.0)
    noise: Range = (0.0, 0.0)
    jpeg: Range | None = None
    eight_bit: bool = False
    relit: bool = False

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _LIMITS.items():
            given = getattr(self, name)
            if given is None:
                continue
            low, high = given
            if not (lowest <= low <= high <= highest):
                raise InputError(f"{name} must be a range within {lowest:g} to {highest:g}, not {given}")

    @staticmethod
    def named(name: str) -> Conditions:
        """``none``, ``mild`` or ``physical``. Raises InputError for other names."""
        if name not in PRESETS:
            raise unknown("conditions", name, PRESETS)
        return PRESETS[name]

    def acts(self, *names: str) -> bool:
        """Whether any of these conditions changes images at all."""
        return any(getattr(self, name) != getattr(PRESETS["none"], name) for name in names)

    def draw(self, seeds: Tensor, turn: int = 0) -> Drawn:
        """Conditions for each seed (N,); another ``turn`` gives independent ones."""
        numbers = uniform(seeds, 8 * turn, (len(_LIMITS) + 1,))
        shares = dict(zip(_LIMITS, numbers.unbind(1), strict=False))
        values = {}
        for name, share in shares.items():
            low, high = getattr(self, name) or (100.0, 100.0)
            values[name] = low + (high - low) * share
        low, high = self.shift
        values["shift"] = torch.stack([values["shift"], low + (high - low) * numbers[:, -1]], dim=1)
        return Drawn(conditions=self, seeds=seeds, turn=turn, **values)


@dataclass(frozen=True)
class Drawn:
    """The conditions of each image, (N,) each and ``shift`` (N, 2); units as in :class:`Conditions`."""

    conditions: Conditions
    seeds: Tensor
    turn: int
    distance: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    zoom: Tensor
    shift: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    blur: Tensor
    noise: Tensor
    jpeg: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Tensor | slice) -> Drawn:
        return replace(self, **{name: getattr(self, name)[index] for name in self._tensors()})

    def _tensors(self) -> Iterator[str]:
        return (field.name for field in fields(self) if field.name not in ("conditions", "turn"))


# In the order of their random numbers; the limits keep every value meaningful.
_LIMITS: dict[str, Range] = {
    "distance": (1.0, 100.0),
    "yaw": (-75.0, 75.0),
    "pitch": (-75.0, 75.0),
    "roll": (-180.0, 180.0),
    "zoom": (0.05, 4.0),
    "shift": (-0.5, 0.5),
    "brightness": (0.0, 4.0),
    "contrast": (0.0, 4.0),
    "gamma": (0.1, 10.0),
    "blur": (0.0, 10.0),
    "noise": (0.0, 1.0),
    "jpeg": (1.0, 100.0),
}

PRESETS = {
    "none": Conditions(),
    "mild": Conditions(
        yaw=(-10, 10), pitch=(-5, 5), roll=(-5, 5), zoom=(0.95, 1.05), shift=(-0.02, 0.02),
        brightness=(0.85, 1.15), contrast=(0.9, 1.1), blur=(0, 0.5), noise=(0, 0.01), eight_bit=True,
    ),
    "physical": Conditions(
        distance=(1.0, 2.0), yaw=(-35, 35), pitch=(-10, 10), roll=(-10, 10), zoom=(0.9, 1.1), shift=(-0.04, 0.04),
        brightness=(0.6, 1.4), contrast=(0.7, 1.2), gamma=(0.8, 1.25), blur=(0, 0.8), noise=(0, 0.03),
        jpeg=(50, 95), eight_bit=True, relit=True,
    ),
}  # fmt: skip


def apply(images: Tensor, drawn: Drawn) -> Tensor:
    """Images (N, C, H, W) in [0, 1] as a camera under the ``drawn`` conditions shows them; differentiable.

    The order is that of the light's way: geometry, lighting, lens blur, sampling at a distance, sensor noise, JPEG,
    8-bit. The gradient passes JPEG and rounding straight through, and is cut where values leave [0, 1] only by noise
    and light. Raises InputError for JPEG of images with neither one nor three channels.
    """
    given = drawn.conditions
    seen = _geometry(images, drawn)
    if given.acts("gamma"):
        seen = seen.clamp(1e-4, 1) ** _column(drawn.gamma)
    if given.acts("contrast", "brightness"):
        seen = ((seen - 0.5) * _column(drawn.contrast) + 0.5) * _column(drawn.brightness)
        seen = seen.clamp(0, 1)
    if given.acts("blur"):
        seen = _blurred(seen, drawn.blur, given.blur[1])
    if given.acts("distance"):
        seen = _coarse(seen, drawn.distance)
    if given.acts("noise"):
        grain = normal(drawn.seeds, 8 * drawn.turn + 1, seen.shape[1:]).to(seen)
        seen = (seen + _column(drawn.noise) * grain).clamp(0, 1)
    if given.jpeg is not None:
        return _straight_through(seen, _compressed(seen, drawn.jpeg))
    if given.eight_bit:
        return _straight_through(seen, (seen.detach() * 255).round() / 255)
    return seen


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    return exact + (smooth - smooth.detach()) if smooth.requires_grad else exact


def _geometry(images: Tensor, drawn: Drawn) -> Tensor:
    if not drawn.conditions.acts("yaw", "pitch", "roll", "shift", "zoom"):
        return images
    from kornia.geometry.transform import warp_perspective

    size = (images.shape[-2], images.shape[-1])
    warped: Tensor = warp_perspective(
        images, homographies(drawn, size).to(images), size, mode="bilinear", padding_mode="border", align_corners=True
    )
    return warped


# The sign's frame seen from four times its half width away: a stop sign of 75 cm from 1.5 m, where perspective shows.
_FOCAL = 4.0


def homographies(drawn: Drawn, size: tuple[int, int]) -> Tensor:
    """Where each point of the given image comes to lie, (N, 3, 3), in pixels counted from the first one's middle.

    A plane turned by pitch (about x), yaw (about y) and roll (about the viewing axis), seen by a pinhole camera.
    """
    height, width = size
    yaw, pitch, roll = (angle.deg2rad() for angle in (drawn.yaw, drawn.pitch, drawn.roll))
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn_x = _matrix([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()])
    turn_y = _matrix([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()])
    turn_z = _matrix([roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one])
    turned = turn_z @ turn_y @ turn_x
    # A point (x, y) of the plane lies at turned (x, y, 0) + (0, 0, focal) and is seen at focal * (X, Y) / Z.
    plane = torch.stack([turned[:, :, 0], turned[:, :, 1], torch.stack([zero, zero, one * _FOCAL], 1)], dim=2)
    lens = _matrix([
        drawn.zoom * _FOCAL, zero, 2 * drawn.shift[:, 0],
        zero, drawn.zoom * _FOCAL, 2 * drawn.shift[:, 1],
        zero, zero, one,
    ])  # fmt: skip
    half_w, half_h = width / 2, height / 2
    to_pixels = plane.new_tensor([[half_w, 0, half_w - 0.5], [0, half_h, half_h - 0.5], [0, 0, 1]])
    return to_pixels @ lens @ plane @ to_pixels.inverse()


def _matrix(entries: list[Tensor]) -> Tensor:
    return torch.stack(entries, dim=1).view(-1, 3, 3)


def _blurred(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    side = 2 * max(1, round(3 * largest)) + 1
    side = min(side, 2 * ((min(images.shape[-2:]) - 1) // 2) + 1)
    sigmas = sigma.clamp_min(1e-3)[:, None].expand(-1, 2)
    blurred: Tensor = gaussian_blur2d(images, (side, side), sigmas.to(images), border_type="reflect")
    return blurred


def _coarse(images: Tensor, distance: Tensor) -> Tensor:
    """Each image averaged over areas of ``distance`` x ``distance`` pixels, and scaled back bilinearly."""
    height, width = images.shape[-2:]
    rows, columns = (_resampling(side, distance).to(images) for side in (height, width))
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _resampling(side: int, distance: Tensor) -> Tensor:
    """Matrices (N, side, side) that average ``side`` values down to round(side / distance) and interpolate back."""
    fewer = (side / distance).round().long().clamp(1, side)
    kinds, which = torch.unique(fewer, return_inverse=True)
    eye = torch.eye(side, device=distance.device)[None]
    tables = [
        F.interpolate(F.adaptive_avg_pool1d(eye, int(count)), side, mode="linear", align_corners=False)[0].T
        for count in kinds
    ]
    return torch.stack(tables)[which]


def _compressed(images: Tensor, quality: Tensor) -> Tensor:
    """Each image through the JPEG library at its own quality."""
    from torchvision.io import decode_jpeg, encode_jpeg

    if images.shape[1] not in (1, 3):
        raise InputError(f"JPEG needs images of one or three channels, not {images.shape[1]}: switch jpeg off")
    pixels = (images.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    qualities = quality.round().int().tolist()
    files = [encode_jpeg(image, quality=number) for image, number in zip(pixels, qualities, strict=True)]
    return torch.stack([decode_jpeg(file) for file in files]).to(images) / 255
