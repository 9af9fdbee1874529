"""Pictures with what was detected in them: boxes, class names and scores, many on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from robust.detection.detector import Detection

_SOURCE, _TARGET, _OTHER = "#00e070", "#ff3bd4", "#ffd21f"
_MARGIN, _TITLE = 6, 22


def drawn_detections(
    picture: Tensor,
    found: Detection,
    names: Sequence[str],
    source: int,
    target: int | None,
    threshold: float,
    side: int,
) -> Image.Image:
    """The picture (3, H, W), ``side`` pixels wide, with the detections of at least ``threshold``: green where they are
    of class ``source``, pink of ``target``, yellow of others."""
    image: Image.Image = to_pil_image(picture.clamp(0, 1).cpu())
    scale = side / image.width
    image = image.resize((side, round(image.height * scale)))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for index in found["scores"].argsort().tolist():  # the surest last, on top
        if found["scores"][index] < threshold:
            continue
        label = int(found["labels"][index])
        color = _SOURCE if label == source else _TARGET if label == target else _OTHER
        x0, y0, x1, y1 = (found["boxes"][index] * scale).tolist()
        x0, y0 = max(x0, 1), max(y0, 1)
        x1, y1 = max(x0 + 1, min(x1, image.width - 2)), max(y0 + 1, min(y1, image.height - 2))
        draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
        name = names[label] if label < len(names) else f"class {label}"
        text = f"{name} {float(found['scores'][index]):.2f}"
        left, top = min(x0, image.width - draw.textlength(text, font) - 4), max(0.0, y0 - 15)
        draw.rectangle((left, top, left + draw.textlength(text, font) + 4, top + 15), fill=color)
        draw.text((left + 2, top), text, fill="black", font=font)
    return image


def sheet(columns: dict[str, list[Image.Image]], across: int = 1) -> Image.Image:
    """Pictures of equal size, a titled column for each name; ``across`` such blocks side by side."""
    titles, rows = list(columns), list(zip(*columns.values(), strict=True))
    width, height = rows[0][0].size
    down = -(-len(rows) // across)
    block = len(titles) * (width + 2) + _MARGIN
    page = Image.new("RGB", (across * block - _MARGIN, _TITLE + down * (height + 2)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for number, row in enumerate(rows):
        left, top = number // down * block, _TITLE + number % down * (height + 2)
        for column, picture in enumerate(row):
            page.paste(picture, (left + column * (width + 2), top))
    for part in range(across):
        for column, title in enumerate(titles):
            draw.text((part * block + column * (width + 2) + 2, 2), title, fill="black", font=font)
    return page
