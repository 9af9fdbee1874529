#!/usr/bin/env python3
"""Common corruptions: a model's 15 x 5 grid with its time, and our severities beside those of imagecorruptions.

    python benchmarks/corruptions.py grid --model examples/gtsrb_model.py:load_model --data gtsrb_test.npz
    python benchmarks/corruptions.py severity --images photographs/ --side 224 --reference reference/bin/python
    python benchmarks/corruptions.py severity --images cifar10_test.npz --side 32 --reference reference/bin/python
    python benchmarks/corruptions.py sheet --images photographs/ --side 224 --out sheet.png

`severity` prints the mean peak signal-to-noise ratio over the images, in dB, for each corruption and severity, and the
processor time an image takes on one core. imagecorruptions 1.1.2 does not run beside current libraries and is called in
an environment of its own (Python 3.9 to 3.11):

    python3.11 -m venv reference
    reference/bin/pip install imagecorruptions==1.1.2 'scikit-image<0.19' 'numpy<2' 'setuptools<81'

At 224 pixels it runs with its own constants, which are ImageNet-C's. It has no others; at 32 pixels it is given ours,
which are those of CIFAR-10-C, so that what is compared is the procedure (elastic_transform has other constants, and is
left out there).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import robust
from robust.corruptions import NAMES, SEVERITIES, corrupt
from robust.corruptions.severity import constants
from robust.progress import Plain

_REFERENCE = Path(__file__).with_name("corruptions_reference.py")


def images_of(source: Path, side: int, n: int) -> Tensor:
    """Up to ``n`` images (N, 3, side, side) in [0, 1], 8-bit, from an .npz or a folder of pictures."""
    if source.suffix == ".npz":
        with np.load(source) as held:
            stored = held["images"]
            chosen = np.random.default_rng(0).choice(len(stored), min(n, len(stored)), replace=False)
            pictures = [Image.fromarray(stored[index]) for index in np.sort(chosen)]
    else:
        pictures = [Image.open(path) for path in sorted(source.iterdir())[:n]]
    resized = [np.asarray(picture.convert("RGB").resize((side, side))) for picture in pictures]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2)).float() / 255


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean over images, in dB."""
    error = (images - others).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


def ours(images: Tensor) -> dict[str, tuple[list[float], float]]:
    """For each corruption the PSNR by severity and the milliseconds an image takes."""
    found = {}
    for name in NAMES:
        start = time.process_time()
        levels = [psnr(images, corrupt(images, name, severity)) for severity in SEVERITIES]
        found[name] = levels, 1000 * (time.process_time() - start) / (len(SEVERITIES) * len(images))
    return found


def reference(images: Tensor, python: Path) -> dict[str, tuple[list[float], float]]:
    """The same of imagecorruptions in the environment of ``python``."""
    side = images.shape[-1]
    given = {} if side > 32 else {name: [constants(name, s, side, side) for s in SEVERITIES] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
        command = [str(python), "-W", "ignore", str(_REFERENCE), str(path), json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: tuple(values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}


def compare(images: Tensor, python: Path | None) -> None:
    torch.set_num_threads(1)
    own = ours(images)
    other = {} if python is None else reference(images, python)
    print(f"{len(images)} images, {images.shape[-1]} pixels; PSNR in dB at severity 1 to 5, then ms an image")
    for name, (levels, cost) in own.items():
        line = f"{name:<18}" + "".join(f"{level:6.1f}" for level in levels) + f"{cost:8.2f}"
        if name in other:
            levels, cost = other[name]
            line += "   imagecorruptions" + "".join(f"{level:6.1f}" for level in levels) + f"{cost:9.2f}"
        print(line)


def sheet(images: Tensor, out: Path) -> None:
    """One row for each corruption: the first image, then severities 1 to 5."""
    first = images[:1]
    rows = [torch.cat([first, *(corrupt(first, name, s) for s in SEVERITIES)], 3) for name in NAMES]
    pixels = (torch.cat(rows, 2)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    scale = max(1, 128 // first.shape[-1])
    picture = Image.fromarray(pixels)
    picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(out)
    print(out)


def grid(model: str, data: str, n: int | None, out: Path | None) -> None:
    start, busy = time.perf_counter(), time.process_time()
    summary = robust.audit(model, data, ["corruptions"], limit=n, out=out, progress=Plain())
    result = summary.corruptions
    assert result is not None
    assert result.mean_accuracy is not None
    for record in result.corruptions:
        cells = [cell.accuracy.value for cell in result.cells if cell.corruption == record.name]
        shares = "".join(f"{100 * value:7.1f}" for value in (*cells, record.accuracy.value))
        print(f"{record.name:<18}{shares}")
    mean = result.mean_accuracy
    print(
        f"{summary.data.n} images; clean {summary.clean_accuracy.value:.2%}; mean {mean.value:.2%} "
        f"[{mean.low:.2%}, {mean.high:.2%}]; {time.perf_counter() - start:.0f} s, "
        f"{time.process_time() - busy:.0f} s of processor time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("grid", "severity", "sheet"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--n", type=int, help="images; default: all for grid, 40 for severity")
    parser.add_argument("--reference", type=Path, help="a Python that can import imagecorruptions")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "grid":
        grid(given.model, given.data, given.n, given.out)
        return
    if given.images is None:
        parser.error("--images is missing: a folder of pictures, or an .npz")
    images = images_of(given.images, given.side, given.n or 40)
    if given.what == "severity":
        compare(images, given.reference)
    else:
        sheet(images, given.out or Path("sheet.png"))


if __name__ == "__main__":
    main()
