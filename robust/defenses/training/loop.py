"""The training loop: one for all methods."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.data import ImageSet, load_data
from robust.defenses.training import checkpoint
from robust.defenses.training.augmentation import augmentation, check_augmentation
from robust.defenses.training.averaging import Average
from robust.defenses.training.awp import perturbed
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.guard import MOST_ROLLBACKS, Guard
from robust.defenses.training.history import Epoch, Hardened, History
from robust.defenses.training.images import Images, check_training, hold_out
from robust.defenses.training.precision import training_dtype
from robust.defenses.training.processes import Processes, join
from robust.defenses.training.schedule import rate
from robust.defenses.training.validation import Gap, Held
from robust.errors import InputError, RobustError
from robust.float32 import exact_float32
from robust.models import CallableModel, ExportedModel, check_model, identify
from robust.progress import Progress, Silent
from robust.randomness import own_random, seed_all

HISTORY = "history.json"
HELD_SHARE = 0.1
_EVERY = 200  # batches of single steps, after which the guard looks; and at the end of each epoch


def train_model(
    defense: Defense, model: nn.Module, train: Any, validation: Any, out: Path | None, progress: Progress | None
) -> Hardened:
    """See :meth:`Defense.fit`."""
    data = load_data(train)
    held = None if validation is None else load_data(validation)
    if held is None:
        check_training(data, int(data.labels.max()) + 1)
        data, held = hold_out(data, HELD_SHARE, defense.seed)
    defense = defense.fitted(data.shape)
    processes = join(defense.device)
    device = processes.device
    _check_fit(defense, model, data, held, device)
    processes.check(min(defense.batch_size, len(data)))
    with (
        torch.inference_mode(False), torch.enable_grad(), own_random(device, defense.seed), exact_float32(),
    ):  # fmt: skip
        shown = progress if progress and processes.first else Silent()
        run = _Run(defense, _own_copy(model, defense.fresh).to(device), data, held, processes, shown)
        return run.to_the_end(out, _identity(defense, model, data, held))


def _check_fit(defense: Defense, model: nn.Module, data: ImageSet, held: ImageSet, device: torch.device) -> None:
    untrainable = (CallableModel, ExportedModel, torch.jit.ScriptModule)
    if isinstance(model, untrainable) or not any(p.requires_grad for p in model.parameters()):
        raise InputError("the model has no weights to train: give the module itself, such as file.py:factory")
    if held.shape != data.shape:
        raise InputError(f"validation: images of shape {held.shape}, but the training images are {data.shape}")
    place = next(iter(model.parameters())).device
    for part in (data, held):
        classes = check_model(model, part.batch(range(min(8, len(part)))).to(place), part.labels, len(part.class_names))
    check_training(data, classes)
    check_augmentation(augmentation(defense.augment), data.batch(range(min(8, len(data)))))


def _own_copy(model: nn.Module, fresh: bool) -> nn.Module:
    made: nn.Module = copy.deepcopy(model).float()
    made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made.train()
    if fresh:
        for module in made.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return made


def _identity(defense: Defense, model: nn.Module, data: ImageSet, held: ImageSet) -> dict[str, Any]:
    """What must be the same for a run to be gone on with; the device may be called otherwise."""
    settings = {name: value for name, value in defense.settings().items() if name != "device"}
    return {
        "method": defense.name, "settings": settings, "model": identify(model), "training data": data.sha256(),
        "validation data": held.sha256(),
    }  # fmt: skip


class _Run:
    """One training under way. What is in ``_saved`` is all of its state."""

    def __init__(
        self, defense: Defense, model: nn.Module, data: ImageSet, held: ImageSet, processes: Processes,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.defense, self.processes, self.device, self.progress = defense, processes, processes.device, progress
        dtype, device = training_dtype(defense.precision, processes.device), processes.device
        self.judged = Network(copy.deepcopy(model), dtype)
        self.model = model = processes.same(model)
        self.images = Images(data, device)
        self.held = Held(Images(held, device), defense.ball, len(data))
        self.augment = augmentation(defense.augment)
        self.network = Network(model, dtype)
        self.average = None if defense.averaging == "none" else Average(defense.averaging, model, defense.decay)
        self.optimizer = _optimizer(defense, model)
        self.guard = Guard()
        self.memory: dict[str, Tensor] = {}
        self.batch_size = min(defense.batch_size, len(self.images))
        self.batches = max(1, len(self.images) // self.batch_size // defense.uses)
        self.step, self.seconds, self.processor = 0, 0.0, 0.0
        self.epochs: list[Epoch] = []
        self.remarks: list[str] = []
        self.stopped = ""
        self.best: dict[str, Tensor] | None = None
        self.best_epoch, self.best_robust = 0, -1.0
        self.good: dict[str, Any] = {}

    @property
    def total(self) -> int:
        return self.defense.epochs * self.batches * self.defense.uses

    def to_the_end(self, out: Path | None, identity: dict[str, Any]) -> Hardened:
        path = None if out is None else out / checkpoint.FILE
        content = None if path is None else checkpoint.load(path, identity)
        if content is not None:
            self._restore(content)
            self.progress.line(f"{self.defense.name}: goes on after epoch {len(self.epochs)}")
        if not self.processes.agree(len(self.epochs)):
            raise InputError(f"{path}: not the same for all processes; give a folder that every machine sees")
        told = self.processes.told(self.model)
        if told and told not in self.remarks:
            self._remark(told)
        if out is not None and self.processes.first:
            out.mkdir(parents=True, exist_ok=True)
        while len(self.epochs) < self.defense.epochs and not self.stopped:
            self._epoch(len(self.epochs) + 1)
            if path is not None and out is not None and self.best is not None:
                saved = self._saved()
                if self.processes.first:
                    checkpoint.save(path, {"identity": identity, **saved})
                    self._history().write(out / HISTORY)
        if self.best is None:
            raise RobustError(f"{self.defense.name}: {self.stopped}, before one epoch was done: lower learning_rate")
        model = self.judged.model
        model.load_state_dict(self.best)
        return Hardened(model.eval(), self._history())

    # An epoch

    def _epoch(self, number: int) -> None:
        started, processor = time.perf_counter(), time.process_time()
        # One seed an epoch: a run that goes on from a checkpoint draws what the unbroken run drew.
        seed_all(self.device, self.defense.seed * 1_000_003 + number)
        self.good = self._weights()
        self.progress.stage(f"{self.defense.name}  epoch {number}/{self.defense.epochs}", len(self.images))
        loss = self._pass_over()
        gap = None if self.stopped else self._guarded(last=True)
        if gap is not None or not self.stopped:
            self._judge(number, loss, gap, started, processor)

    def _pass_over(self) -> float:
        """All batches of one epoch; the mean loss."""
        order = torch.randperm(len(self.images))
        total, steps = torch.zeros((), device=self.device), 0
        marks = set(range(_EVERY, self.batches, _EVERY)) if self.defense.single_step else set()
        for place in range(self.batches):
            images, labels = self.images.batch(order[place * self.batch_size :][: self.batch_size], self.processes)
            images = self.augment(images)
            for _ in range(self.defense.uses):
                total, steps = total + self._step(images, labels), steps + 1
            self.progress.advance(len(labels) * self.defense.uses)
            # Elsewhere each look at the loss would wait for the device.
            looks = self.device.type == "cpu" or place % 16 == 0 or place == self.batches - 1
            if looks and not math.isfinite(float(total)):
                self._stop(f"training diverged (the loss is {float(total)}) in epoch {len(self.epochs) + 1}")
                break
            if place + 1 in marks:
                self._guarded(last=False)
                if self.stopped:
                    break
        return float(total) / steps

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer: attack, loss, backward; the loss."""
        defense, guard, processes = self.defense, self.guard, self.processes
        rows = processes.rows(len(labels))
        batch = Batch(
            self.network, images[rows], labels[rows], defense.ball, guard.step_scale, guard.noise_scale, self.memory,
            images, rows.start,
        )  # fmt: skip
        share = len(batch.labels) / len(labels)
        learning_rate = rate(defense.schedule, self.step, self.total, defense.peak_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        points = defense.attack(batch).detach()
        points.requires_grad_(defense.learns)
        with (
            processes.own_random(defense.seed * 1_000_003 + self.step),
            perturbed(self.model, lambda: defense.loss(batch, points) * share, defense.awp, processes.total),
        ):
            loss = defense.loss(batch, points) * share
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        loss = processes.joined(self.model, loss, share)
        nn.utils.clip_grad_norm_(self.model.parameters(), defense.clip)
        self.optimizer.step()
        self.step += 1
        if points.grad is not None:
            defense.learn(batch, points.grad)
        if self.average is not None:
            self.average.update(self.model, self.step / self.total)
        return loss

    # Guard

    def _guarded(self, last: bool) -> Gap | None:
        """Measure FGSM against PGD; where they parted, go back to the last good weights. None where not measured."""
        if not (self.defense.guard and self.defense.guarded) or not (self.defense.single_step or last):
            return None
        gap = self._gap()
        if not self.guard.collapsed(gap):
            self.good = self._weights()
            return gap
        self._put(self.good)
        self.guard.tighten()
        remark = (
            f"epoch {len(self.epochs) + 1}: catastrophic overfitting (accuracy {gap.fgsm:.0%} under FGSM, "
            f"{gap.pgd:.0%} under PGD): back to the last good weights, step x {self.guard.step_scale:.2f}, "
            f"noise x {self.guard.noise_scale:.2f}"
        )
        self._remark(remark)
        if self.guard.gave_up:
            self._stop(f"catastrophic overfitting came back {MOST_ROLLBACKS} times; use pgd or trades")
        return self._gap()

    def _gap(self) -> Gap:
        def measured() -> tuple[float, float]:
            gap = self.held.gap(self.network)
            return gap.fgsm, gap.pgd

        return Gap(*self.processes.decided(measured))

    def _weights(self) -> dict[str, Any]:
        found = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "memory": self.memory}
        return copy.deepcopy({**found, "average": None if self.average is None else self.average.saved()})

    def _put(self, weights: dict[str, Any]) -> None:
        weights = copy.deepcopy(weights)
        self.model.load_state_dict(weights["model"])
        self.optimizer.load_state_dict(weights["optimizer"])
        self.memory = {name: value.to(self.device) for name, value in weights["memory"].items()}
        if self.average is not None:
            self.average.restore(weights["average"])

    # Judgement

    def _judge(self, number: int, loss: float, gap: Gap | None, started: float, processor: float) -> None:
        """Measure the averaged weights on the held-out images, note the epoch, keep it if it is the best."""
        state = self.model.state_dict() if self.average is None else self.average.state
        self.judged.model.load_state_dict(state)
        clean, robust = self.processes.decided(
            lambda: (self.held.clean(self.judged), self.defense.robust_accuracy(self.held, self.judged))
        )
        self.seconds += time.perf_counter() - started
        self.processor += time.process_time() - processor
        epoch = Epoch(
            epoch=number, loss=loss, clean=clean, robust=robust,
            fgsm=None if gap is None else gap.fgsm, pgd=None if gap is None else gap.pgd,
            learning_rate=self.optimizer.param_groups[0]["lr"], step_scale=self.guard.step_scale,
            noise_scale=self.guard.noise_scale, rollbacks=self.guard.rollbacks, seconds=self.seconds,
            processor=self.processor,
        )  # fmt: skip
        self.epochs.append(epoch)
        if robust >= self.best_robust:  # of equals the later: it is trained further, and surer of itself
            self.best_robust, self.best_epoch = robust, number
            self.best = {name: value.detach().clone() for name, value in state.items()}
        left = self.seconds / number * (self.defense.epochs - number)
        self.progress.line(
            f"{self.defense.name:<12} epoch {number:>3}/{self.defense.epochs}  loss {loss:.3f}  validation: clean "
            f"{clean:.1%}, {self.defense.measure} {robust:.1%}  {self.seconds:.0f} s, about {left:.0f} s left"
        )
        patience = self.defense.patience
        if patience is not None and number - self.best_epoch >= patience and number < self.defense.epochs:
            self._stop(f"early stop: no better robust validation for {patience} epochs")

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._remark(reason + (f"; the weights of epoch {self.best_epoch} are kept" if self.best_epoch else ""))

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        self.progress.line(f"{self.defense.name}: {text}")

    def _history(self) -> History:
        return History(
            self.defense.name, self.defense.measure, list(self.epochs), self.best_epoch, self.stopped,
            list(self.remarks),
        )  # fmt: skip

    # Checkpoint

    def _saved(self) -> dict[str, Any]:
        weights = self._weights()
        rows = self.processes.rows(self.batch_size)
        weights["memory"] = {
            name: self.processes.whole(value[rows], self.batch_size) for name, value in weights["memory"].items()
        }  # fmt: skip
        return {
            "weights": weights, "guard": self.guard.saved(), "step": self.step, "seconds": self.seconds,
            "processor": self.processor,
            "epochs": [asdict(epoch) for epoch in self.epochs], "remarks": self.remarks, "stopped": self.stopped,
            "best": self.best, "best_epoch": self.best_epoch, "best_robust": self.best_robust,
        }  # fmt: skip

    def _restore(self, content: dict[str, Any]) -> None:
        self._put(content["weights"])
        self.guard = Guard(**content["guard"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.processor = content["processor"]
        self.epochs = [Epoch(**epoch) for epoch in content["epochs"]]
        self.remarks, self.stopped = list(content["remarks"]), content["stopped"]
        self.best, self.best_epoch, self.best_robust = content["best"], content["best_epoch"], content["best_robust"]


def _optimizer(defense: Defense, model: nn.Module) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: normalization and biases need none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": defense.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if defense.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=defense.peak_rate)
    return torch.optim.SGD(groups, lr=defense.peak_rate, momentum=0.9, nesterov=True)
