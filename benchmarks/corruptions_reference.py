"""Run by corruptions.py in an environment that has imagecorruptions 1.1.2: prints its PSNR and time as JSON.

    python corruptions_reference.py IMAGES.npy CONSTANTS_AS_JSON

Images: uint8 (N, H, W, 3). Constants: by corruption, a row of numbers for each severity; its own where there are none.
"""

import inspect
import json
import re
import sys
import time

import imagecorruptions.corruptions as theirs
import numpy as np
from PIL import Image

NAMES = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip


def expression(name, row):
    """A row of our constants as the reference writes its own."""
    if name == "zoom_blur":
        return f"np.linspace(1, {row[0]}, {round(row[1])})"
    if name == "pixelate":
        return repr(1 / row[0])
    whole = [round(value) if abs(value - round(value)) < 1e-9 else value for value in row]
    return repr(whole[0] if len(whole) == 1 else tuple(whole))


def function(name, rows):
    """The corruption, with other constants where ``rows`` are given."""
    if not rows:
        return getattr(theirs, name)
    table = "[" + ", ".join(expression(name, row) for row in rows) + "]"
    source, found = re.subn(r"c = \[.*?\]\[\s*severity - 1\]", f"c = {table}[severity - 1]",
                            inspect.getsource(getattr(theirs, name)), count=1, flags=re.DOTALL)  # fmt: skip
    assert found == 1, name
    scope = dict(vars(theirs))
    exec(source, scope)
    return scope[name]


def main():
    images, constants = np.load(sys.argv[1]), json.loads(sys.argv[2])
    np.random.seed(0)
    result = {}
    for name in NAMES:
        if constants and name == "elastic_transform":
            continue
        corrupt, levels, start = function(name, constants.get(name)), [], time.process_time()
        for severity in range(1, 6):
            values = []
            for image in images:
                out = np.uint8(np.asarray(corrupt(Image.fromarray(image), severity)))
                error = max(1e-10, float(((out / 255.0 - image / 255.0) ** 2).mean()))
                values.append(-10 * np.log10(error))
            levels.append(float(np.mean(values)))
        result[name] = levels, 1000 * (time.process_time() - start) / (5 * len(images))
    print(json.dumps(result))


main()
