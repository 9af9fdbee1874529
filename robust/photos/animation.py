"""A short animation: the sign from far to near, without and with the print, and the model's reading under it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor, nn

from robust.photos.camera import Camera, Scene, View, window
from robust.photos.lettering import INK, MUTED, PAPER, RIGHT, WRONG, write
from robust.photos.trial import look, readings
from robust.reports.formats import class_name

FRAMES = 24
_SCENE, _INPUT, _GAP = 256, 72, 14
_COLORS = (128, 96, 64, 48, 32)
LARGEST = 1_500_000


def approach(
    held: Scene, model: nn.Module, names: Sequence[str], *, source: int, size: tuple[int, int], share: float,
    camera: Camera | None = None, far: float = 60.0, near: float = 5.0, angle: float = 0.0, frames: int = FRAMES,
    seed: int = 0,
) -> tuple[list[Image.Image], list[tuple[float, str, str]]]:  # fmt: skip
    """Frames of the way from ``far`` to ``near``, in equal steps of the sign's size on a logarithmic scale.

    ``held`` has two variants, the clean sign and the one with the print. Also (meters, clean reading, patched reading)
    of every frame, as they stand under it.
    """
    camera = camera or Camera()
    pictures, read = [], []
    for distance in np.geomspace(far, near, frames):
        view = View(float(distance), angle)
        inputs = look(held, camera, view, share, size, seed)
        classes, sure = readings(model, inputs)
        rng = np.random.default_rng([seed % 2**64, round(1000 * distance)])
        scenes = window(held, camera, view, _SCENE, _SCENE, None, rng)
        texts = [f"{class_name(names, int(one))} {share_:.0%}" for one, share_ in zip(classes, sure, strict=True)]
        rights = [int(one) == source for one in classes]
        pictures.append(_frame(float(distance), scenes, inputs, texts, rights))
        read.append((float(distance), texts[0], texts[1]))
    return pictures, read


def _frame(distance: float, scenes: Tensor, inputs: Tensor, texts: list[str], rights: list[bool]) -> Image.Image:
    width = 2 * _SCENE + 3 * _GAP
    frame = Image.new("RGB", (width, _SCENE + _INPUT + 3 * _GAP), PAPER)
    draw = ImageDraw.Draw(frame)
    for number, title in enumerate(("without the patch", "with the patch")):
        x, y = _GAP + number * (_SCENE + _GAP), 2 * _GAP + _SCENE
        frame.paste(_picture(scenes[number]), (x, _GAP))
        frame.paste(_picture(inputs[number]).resize((_INPUT, _INPUT), Image.Resampling.NEAREST), (x, y))
        left, room = x + _INPUT + 10, _SCENE - _INPUT - 10
        write(draw, (left, y + 2), title, 13, MUTED, room)
        write(draw, (left, y + 20), texts[number], 16, RIGHT if rights[number] else WRONG, room, bold=True)
        write(draw, (left, y + 46), f"from {distance:.0f} m", 14, INK, room)
    return frame


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(np.rint(255 * image.permute(1, 2, 0).numpy()).astype(np.uint8))


def _palette(strip: Image.Image, colors: int) -> Image.Image:
    """A palette for a picture: its own colors, and those of paper and lettering as they are."""
    fixed = (PAPER, INK, MUTED, RIGHT, WRONG)
    own = strip.quantize(colors - len(fixed), Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own[: 3 * (colors - len(fixed))], *(value for color in fixed for value in color)])
    return palette


def as_gif(pictures: Sequence[Image.Image], milliseconds: int = 220, hold: int = 1800) -> bytes:
    """The frames as a GIF that repeats, the last one held; in as many colors as keep it below 1.5 MB."""
    for colors in _COLORS:
        # One palette for all frames, of all frames: else the colors flicker.
        strip = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
        for number, picture in enumerate(pictures):
            strip.paste(picture, (0, number * picture.height))
        palette = _palette(strip, colors)
        frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        buffer = io.BytesIO()
        durations = [milliseconds] * (len(frames) - 1) + [hold]
        frames[0].save(
            buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
        )
        if buffer.tell() < LARGEST:
            break
    return buffer.getvalue()
