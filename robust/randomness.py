"""Random numbers that belong to an image, not to its place in a batch.

Every image has a seed made from its own pixels and the attack's seed, and every number is a hash of (seed, stream,
position). So a run does not depend on how images are batched or ordered, draws the same on CPU and CUDA, and leaves
the global random state alone. The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) twice over.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def image_seeds(images: Tensor, seed: int) -> Tensor:
    """One int64 seed per image (N, ...), from its float32 pixels and ``seed``."""
    pixels = images.detach().to("cpu", torch.float32).contiguous()
    sums = [zlib.crc32(image.numpy().tobytes()) for image in pixels]
    hashed = _mix(torch.tensor(sums, dtype=torch.int64) + _wrap(seed * 0x100000001B3))
    return hashed.to(images.device)


def uniform(seeds: Tensor, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), shape (N, *shape); another ``stream`` gives independent numbers."""
    # 24 bits: exact in float32, and never rounded up to 1.
    return _bits(seeds, stream, shape).bitwise_right_shift_(40).bitwise_and_(0xFFFFFF).to(dtype).mul_(2**-24)


def normal(seeds: Tensor, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, shape (N, *shape), by Box and Muller."""
    bits = _bits(seeds, stream, shape)
    first = ((bits >> 40 & 0xFFFFFF).to(dtype) + 0.5) * 2**-24
    second = (bits >> 16 & 0xFFFFFF).to(dtype) * 2**-24
    return (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()


def integers(seeds: Tensor, stream: int, shape: Sequence[int], high: Tensor | int) -> Tensor:
    """Whole numbers in [0, high), int64, shape (N, *shape); ``high`` broadcasts over them."""
    return (uniform(seeds, stream, shape, torch.float64) * high).long()


@contextmanager
def own_random(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """For code that draws from torch's global generators: those of the CPU and of ``device`` are as before afterwards.

    With a ``seed`` both start from it.
    """
    # On Apple's devices a state has no device, and cannot be kept by this function.
    kept = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices=kept, device_type=device.type if kept else "cpu"):
        if seed is not None:
            seed_all(device, seed)
        yield


def seed_all(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of ``device``. `torch.manual_seed` reaches every other device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def _bits(seeds: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    positions = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    starts = _mix(seeds + _wrap((stream + 1) * 0x632BE59BD9B4E019))
    return _mix(starts[:, None] + positions[None]).view(len(seeds), *shape)


def _mix(z: Tensor) -> Tensor:
    z = _folded(z, 30).mul_(_FIRST)
    z = _folded(z, 27).mul_(_SECOND)
    return _folded(z, 31)


def _folded(z: Tensor, bits: int) -> Tensor:
    """z ^ z >> bits by a logical shift: torch's own keeps the sign."""
    return (z >> bits).bitwise_and_((1 << 64 - bits) - 1).bitwise_xor_(z)


def _wrap(value: int) -> int:
    """The signed 64-bit number with the low bits of ``value``."""
    return (value + 2**63) % 2**64 - 2**63
