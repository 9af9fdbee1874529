"""Read the German traffic signs (GTSRB; Stallkamp et al., 2012) as 32x32 images, from whichever form is at hand."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust.errors import InputError

SIDE = 32
FRAMES = 30  # consecutive photographs of one physical sign
SHORT_TRACK = (33, 19)  # (class, track) of the only track that has one frame less
SHORT_CLASS_SIZE = 689

CLASS_NAMES = (
    *(f"speed limit {limit}" for limit in (20, 30, 50, 60, 70, 80)),
    *("end of speed limit 80", "speed limit 100", "speed limit 120", "no passing", "no passing for trucks"),
    *("priority at next intersection", "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry"),
    *("general caution", "curve left", "curve right", "double curve", "bumpy road", "slippery road"),
    *("road narrows on the right", "road work", "traffic signals", "pedestrians", "children crossing"),
    *("bicycles crossing", "ice or snow", "wild animals crossing", "end of all limits", "turn right ahead"),
    *("turn left ahead", "ahead only", "straight or right", "straight or left", "keep right", "keep left"),
    *("roundabout", "end of no passing", "end of no passing for trucks"),
)


@dataclass(frozen=True)
class Signs:
    """``images`` uint8 (N, 32, 32, 3), ``labels`` int64 (N,) in 0..42, ``tracks`` int64 (N,) within the class."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    tracks: NDArray[np.int64] | None = None

    def __getitem__(self, index: NDArray[Any]) -> Signs:
        tracks = None if self.tracks is None else self.tracks[index]
        return Signs(self.images[index], self.labels[index], tracks)


def read_signs(folder: Path, split: str) -> Signs:
    """The ``split`` ("train" or "test") of the data set in ``folder``, which holds one of

    - gtsrb_train.npz and gtsrb_test.npz: ``images`` (N, 32, 32, 3) uint8, ``labels`` (N,) and, optionally, ``tracks``;
    - labels.npz and train_*.webp, test_*.webp: mosaics of 32x32 tiles, 50 a row (here or in the sub-folder gtsrb);
    - gtsrb/GTSRB, as torchvision.datasets.GTSRB downloads it: resized to 32x32, whole frames.

    Raises InputError if there is none of these, or a file is damaged.
    """
    read = _reader(folder)
    try:
        signs = read(folder, split)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: the GTSRB {split} files are damaged or incomplete; fetch them again") from error
    n = signs.labels.size
    if n == 0 or signs.labels.shape != (n,):
        raise InputError(f"{folder}: GTSRB {split} labels have shape {signs.labels.shape}, need one number an image")
    if signs.images.shape != (n, SIDE, SIDE, 3) or signs.images.dtype != np.uint8:
        shape = f"{signs.images.dtype} {signs.images.shape}"
        raise InputError(f"{folder}: GTSRB {split} images are {shape}, need uint8 ({n}, 32, 32, 3), one a label")
    if signs.tracks is not None and signs.tracks.shape != (n,):
        raise InputError(f"{folder}: GTSRB {split} tracks have shape {signs.tracks.shape}, need ({n},)")
    if signs.labels.min() < 0 or signs.labels.max() >= len(CLASS_NAMES):
        raise InputError(f"{folder}: GTSRB {split} labels must lie in 0..{len(CLASS_NAMES) - 1}")
    if split == "train" and signs.tracks is None:
        return Signs(signs.images, signs.labels, official_tracks(signs.labels))
    return signs


def _reader(folder: Path) -> Callable[[Path, str], Signs]:
    if (folder / "gtsrb_train.npz").is_file():
        return _read_npz
    if any((folder / place / "labels.npz").is_file() for place in (".", "gtsrb")):
        return _read_mosaics
    if (folder / "gtsrb" / "GTSRB").is_dir():
        return _read_torchvision
    forms = "gtsrb_train.npz, gtsrb/labels.npz with its mosaics, or torchvision's gtsrb/GTSRB"
    raise InputError(f"{folder}: no GTSRB here; name a folder with {forms} in --data")


def _read_npz(folder: Path, split: str) -> Signs:
    with np.load(folder / f"gtsrb_{split}.npz") as file:
        tracks = file["tracks"].astype(np.int64) if "tracks" in file else None
        return Signs(file["images"], file["labels"].astype(np.int64), tracks)


def _read_mosaics(folder: Path, split: str) -> Signs:
    folder = folder if (folder / "labels.npz").is_file() else folder / "gtsrb"
    with np.load(folder / "labels.npz") as file:
        labels = file[split].astype(np.int64)
        tracks = file["train_track"].astype(np.int64) if split == "train" else None
    sheets = [np.asarray(Image.open(name).convert("RGB")) for name in sorted(folder.glob(f"{split}_*.webp"))]
    rows = [sheet.reshape(-1, SIDE, sheet.shape[1] // SIDE, SIDE, 3).swapaxes(1, 2) for sheet in sheets]
    tiles = np.concatenate([row.reshape(-1, SIDE, SIDE, 3) for row in rows])
    # The last sheet is padded with black tiles.
    return Signs(tiles[: len(labels)], labels, tracks)


def _read_torchvision(folder: Path, split: str) -> Signs:
    from torchvision.datasets import GTSRB

    pairs = [
        (np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)), label)
        for image, label in GTSRB(str(folder), split=split)
    ]
    return Signs(np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs], np.int64))


def official_tracks(labels: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Track number of each training image if ``labels`` are in the official order, else None.

    In that order classes follow each other, and within a class its tracks of 30 frames; one track has 29.
    """
    sizes = np.bincount(labels, minlength=len(CLASS_NAMES))
    short_class, short_track = SHORT_TRACK
    expected_rest = np.zeros_like(sizes)
    expected_rest[short_class] = SHORT_CLASS_SIZE % FRAMES
    if (np.diff(labels) < 0).any() or (sizes % FRAMES != expected_rest).any() or sizes[short_class] != SHORT_CLASS_SIZE:
        return None
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(labels)) - starts[labels]
    after_gap = (labels == short_class) & (place >= (short_track + 1) * FRAMES - 1)
    tracks: NDArray[np.int64] = (place + after_gap) // FRAMES
    return tracks


def split_by_track(signs: Signs, share: float, seed: int) -> tuple[Signs, Signs]:
    """(the rest, ``share`` of each class's tracks, at least one). Frames of one sign never land on both sides."""
    if signs.tracks is None:
        raise ValueError("the tracks are not known")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(signs.labels), bool)
    for label in np.unique(signs.labels):
        inside = signs.labels == label
        names = np.unique(signs.tracks[inside])
        chosen = generator.permutation(names)[: max(1, round(share * len(names)))]
        held |= inside & np.isin(signs.tracks, chosen)
    return signs[~held], signs[held]
