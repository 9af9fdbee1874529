"""One training on several processes: ``torchrun --nproc-per-node 4 -m robust harden ...``.

Every process holds the whole model and trains on its own rows of every batch. All of them draw the order, the
augmentation and the noise of the whole batch from the same seed and take their rows of it; their gradients are summed
before the step. So the weights are those of one process to float rounding, and the same to the last bit in all of them.
What is decided is measured by the first process and told to the others; it alone writes, and shows progress.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from robust.errors import InputError
from robust.randomness import own_random
from robust.request import choose_device

_LONGEST_WAIT = timedelta(days=7)  # the others wait while the first audits
_LEAST = 2  # images of a batch for each process: of a single one batch normalization makes nothing
_left = False


@dataclass(frozen=True)
class Processes:
    """This process among all ``count``: its ``rank`` from 0, its ``device``. Of one alone nothing is changed."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """This process's rows of a batch of ``n``."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def check(self, batch_size: int) -> None:
        """Raises InputError where a batch is too small to be shared."""
        if self.count > 1 and batch_size < _LEAST * self.count:
            raise InputError(
                f"batch_size {batch_size}: {self.count} processes need at least {_LEAST} images each; give at least "
                f"{_LEAST * self.count}, or start fewer processes"
            )

    @torch.no_grad()
    def same(self, model: nn.Module) -> nn.Module:
        """The model with the first process's weights and buffers; on CUDA with batch normalization over all rows."""
        if self.count == 1:
            return model
        for value in model.state_dict().values():
            sent = value.contiguous()
            distributed.broadcast(sent, 0)
            value.copy_(sent)
        if self.device.type != "cuda":
            return model
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronized

    def total(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sum of each float32 tensor over the processes, in one message."""
        if self.count == 1:
            return tensors
        message = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        distributed.all_reduce(message)
        parts = torch.split(message, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    @torch.no_grad()
    def joined(self, model: nn.Module, loss: Tensor, share: float) -> Tensor:
        """After backward on this process's ``share`` of the batch: gradients summed, running statistics averaged.

        ``loss``: already times the share. Returns it summed, and so the mean over the whole batch. A weight that the
        loss reached in none of them stays without a gradient.
        """
        if self.count == 1:
            return loss.detach()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        running = _running(model)
        reached = torch.tensor([float(weight.grad is not None) for weight in weights], device=self.device)
        *sums, reached, whole = self.total([*gradients, *(value * share for value in running), reached, loss])
        for old, new in zip([*gradients, *running], sums, strict=True):
            old.copy_(new)
        for weight, gradient, times in zip(weights, gradients, reached, strict=True):
            if weight.grad is None and times > 0:  # only where it is None does this wait for the device
                weight.grad = gradient
        return whole

    def whole(self, part: Tensor, n: int) -> Tensor:
        """The ``n`` rows of which each process gives its own, ``part``, in every process."""
        if self.count == 1:
            return part
        found = part.new_zeros((n, *part.shape[1:]))
        found[self.rows(n)] = part
        distributed.all_reduce(found)
        return found

    def decided(self, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """What ``measure`` gives in the first process, in every process; the others wait for it."""
        if self.count == 1:
            return measure()
        numbers = torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.first:
            numbers.copy_(torch.tensor(measure(), dtype=torch.float64))
        distributed.broadcast(numbers, 0)
        first, second = numbers.tolist()
        return first, second

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        if self.count == 1:
            return True
        found = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        found[self.rank] = number
        distributed.all_reduce(found)
        return bool((found == number).all())

    @contextmanager
    def own_random(self, seed: int) -> Iterator[None]:
        """Random numbers of this process alone inside, for dropout; those outside stay the same in all of them."""
        if self.count == 1:
            yield
            return
        with own_random(self.device, seed * self.count + self.rank):
            yield

    def told(self, model: nn.Module) -> str:
        """What to remark on this training; empty for one process."""
        if self.count == 1:
            return ""
        text = f"trained by {self.count} processes on {self.device.type}"
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            return f"{text}; batch normalization over the whole batch (SyncBatchNorm)"
        if _running(model):
            return (
                f"{text}; batch normalization in each process by its own images, running statistics averaged after "
                "each step"
            )
        return text

    def leave(self) -> None:
        """The end of what is done together: from now on the first process is alone. The others end here.

        They end at once, with code 0: a thread of gloo that still waits for the interpreter aborts a process that
        takes the interpreter down first (seen with torch 2.12).
        """
        global _left
        if self.count == 1:
            return
        _close()
        _left = True
        if not self.first:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def join(device: str) -> Processes:
    """All processes that torchrun started, or that are in torch's process group; one alone otherwise.

    ``device``: auto, cuda (each process its own) or cpu. Raises InputError where it cannot be used.
    """
    local, count = _launched()
    if count == 1:
        return Processes(choose_device(device))
    if device not in ("auto", "cuda", "cpu"):
        raise InputError(f"device {device!r}: each of {count} processes takes its own; give auto, cuda or cpu")
    there, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if device != "cpu" and 0 < there < wanted:
        raise InputError(f"device {device!r}: {wanted} processes for {there} GPUs; start {there}, or give cpu")
    chosen = choose_device("cpu" if device == "cpu" or (device == "auto" and there == 0) else f"cuda:{local}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
        atexit.register(_close)
    return Processes(chosen, distributed.get_rank(), distributed.get_world_size())


def _close() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _launched() -> tuple[int, int]:
    """Number of this process on its machine, and how many there are in all."""
    if _left or not distributed.is_available():
        return 0, 1
    local = int(os.environ.get("LOCAL_RANK", 0))
    if distributed.is_initialized():
        return local, distributed.get_world_size()
    if distributed.is_torchelastic_launched():
        return local, int(os.environ["WORLD_SIZE"])
    return 0, 1


def _running(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the normalization that each process does by itself."""
    kinds = (nn.modules.batchnorm._NormBase,)
    modules = [m for m in model.modules() if isinstance(m, kinds) and not isinstance(m, nn.SyncBatchNorm)]
    found = [value for module in modules for value in (module.running_mean, module.running_var)]
    return [value for value in found if value is not None]
