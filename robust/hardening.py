"""Hardening: train a model to withstand a threat, and audit it before and after on the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from robust.auditing import audit
from robust.card import write_card
from robust.comparison import paired_clean, paired_robust
from robust.data import ImageSet, load_data
from robust.defenses.masking import TEMPERATURES, temperature_sweep
from robust.defenses.training.defense import Defense
from robust.defenses.training.distillation import DefensiveDistillation
from robust.defenses.training.history import History
from robust.defenses.training.images import check_training, hold_out
from robust.defenses.training.processes import join
from robust.defenses.training.spelling import build_defense
from robust.errors import InputError
from robust.ledger import Ledger
from robust.models import Normalized, check_model, identify, load_model
from robust.places import check_folder, written_whole
from robust.progress import Progress, Silent
from robust.reports.hardening import write_hardening_report
from robust.request import LEDGER, check_budget, choose_device, parse_threats
from robust.summary import AuditSummary
from robust.threats import ThreatModel

BEFORE, AFTER, TRAINING, WEIGHTS, REPORT = "before", "after", "training", "weights.safetensors", "report.html"
VALIDATION_SHARE = TEST_SHARE = 0.1
DEFAULT_LIMIT = 500


@dataclass(frozen=True)
class Hardening:
    """What `harden` gives back: the hardened model in eval mode, its training, both audits, and the model card.

    ``model`` is ready for use: behind masks or bands where the method trains for them.
    """

    model: nn.Module
    history: History
    before: AuditSummary
    after: AuditSummary
    card: dict[str, Any]
    out: Path


def harden(
    model: str | Path | nn.Module,
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    method: str | Defense | None = None,
    threat: str | ThreatModel = "linf:8/255",
    out: str | Path,
    limit: int | None = DEFAULT_LIMIT,
    seed: int = 0,
    device: str = "auto",
    budget: float | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    trust: bool = False,
    name: str | None = None,
    command: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    progress: Progress | None = None,
    **settings: Any,
) -> Hardening:
    """Harden a classifier, and say by two full audits what it gained and what it cost.

    Args:
        model: a module, or a text that :func:`robust.load_model` takes. It stays as it is; a copy is trained.
        train, validation, test: images with labels, as :func:`robust.load_data` takes them. Validation chooses the best
            epoch, test is what both audits are made on. Where one is not given, a tenth of each class of the training
            images is held out for it.
        method: a name such as ``"trades"`` or ``"trades(beta=6)"``, or a defense with all of its settings; by default
            ``pgd``, against a patch ``roa``. What a method trains for use behind masks or bands is audited behind them.
        settings: those of :class:`robust.defenses.training.defense.Defense`, such as ``epochs=30``.
        out: folder for weights.safetensors, card.json, README.md, history.json, report.html and both audits. The same
            call there goes on where it was stopped.
        limit: audit a random sample of so many test images. budget: seconds for each audit.
        seed, device: of the training and of both audits.
        temperatures: for distillation, those at which the report shows what each attack finds; none for no such figure.

    Both audits run the standard list of attacks with the same images, seeds and budget.

    Of the processes that torchrun started all train; the first audits and writes, and the others end, with code 0, once
    the training is done.

    Raises InputError for anything wrong with the arguments, the model or the data, before anything is written;
    RobustError where training diverges at once.
    """
    progress = progress or Silent()
    (threat,) = parse_threats([threat])
    method = method or ("roa" if threat.norm == "patch" else "pgd")
    defense = method if isinstance(method, Defense) else build_defense(
        method, threat, {"seed": seed, "device": device, **settings}
    )  # fmt: skip
    if isinstance(method, Defense) and settings:
        raise InputError(f"{next(iter(settings))}: is given beside a defense that has its own settings; give it there")
    threat = defense.ball
    processes = join(defense.device)
    choose_device(device)
    progress = progress if processes.first else Silent()
    check_budget(budget)
    folder = check_folder(Path(out), Path(BEFORE) / LEDGER, "hardening")
    assert folder is not None
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust)
    parts = _parts(train, validation, test, resize, seed)
    _check(network, parts, limit)
    defense = defense.fitted(parts.train.shape)
    processes.check(min(defense.batch_size, len(parts.train)))
    if processes.count > 1 and isinstance(defense, DefensiveDistillation):
        raise InputError("method distillation: is judged by one more training for each temperature; start one process")
    called = name or (str(model) if isinstance(model, (str, Path)) else type(model).__name__)

    def audited(subject: nn.Module, stage: str) -> AuditSummary:
        progress.line(f"audit of the model {stage} hardening")
        return audit(
            subject, parts.test, [threat], limit=limit, seed=seed, device=device, budget=budget, out=folder / stage,
            name=f"{called}, {stage} {defense.name}", command=command, progress=progress,
        )  # fmt: skip

    processes.agree(0)  # none writes before all have looked at the folder
    before = audited(network, BEFORE) if processes.first else None
    hardened = defense.fit(network, parts.train, parts.validation, out=folder / TRAINING, progress=progress)
    processes.leave()
    assert before is not None  # of the first process, which is the only one to come here
    hardened.history.write(folder / "history.json")
    _save(hardened.model, folder / WEIGHTS)
    deployed = defense.deployed(hardened.model, parts.test.shape[1:])
    after = audited(deployed, AFTER)
    masking = _masking(defense, network, parts, temperatures, folder, progress)
    with Ledger.open(folder / BEFORE / LEDGER) as first, Ledger.open(folder / AFTER / LEDGER) as second:
        clean, robust = paired_clean(first, second), paired_robust(first, second, threat.text)
    card = write_card(
        folder, defense=defense, name=called, before=before, after=after, clean=clean, robust=robust,
        history=hardened.history, parts=parts, masking=masking, weights=identify(hardened.model), command=command,
        use=_use(model, network, train if test is None else test, defense, folder),
    )  # fmt: skip
    write_hardening_report(card, hardened.history.record(), before, after, folder / REPORT)
    return Hardening(deployed, hardened.history, before, after, card, folder)


def _masking(
    defense: Defense, network: nn.Module, parts: Parts, temperatures: Sequence[float], folder: Path, progress: Progress
) -> list[dict[str, Any]] | None:
    """What each attack finds at each temperature; for distillation only."""
    if not isinstance(defense, DefensiveDistillation) or not temperatures or defense.ball.norm not in ("linf", "l2"):
        return None
    given = {*temperatures, defense.temperature}
    return temperature_sweep(
        defense, network, parts.train, parts.validation, parts.test, sorted(given), folder / TRAINING, progress
    )


@dataclass(frozen=True)
class Parts:
    """Disjoint images for training, for the choice of the epoch, and for both audits; remarks on them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    remarks: tuple[str, ...]


def _parts(train: Any, validation: Any, test: Any, resize: tuple[int, int] | None, seed: int) -> Parts:
    data = load_data(train, resize=resize)
    remarks = []
    held: dict[str, ImageSet] = {}
    for number, (kind, given, share) in enumerate(
        (("test", test, TEST_SHARE), ("validation", validation, VALIDATION_SHARE))
    ):
        if given is not None:
            held[kind] = load_data(given, resize=resize)
            continue
        check_training(data, int(data.labels.max()) + 1)
        data, held[kind] = hold_out(data, share, seed + number)
        remarks.append(
            f"The {kind} images are a tenth of the training data, drawn at random. If several images show one object, "
            f"it may be on both sides and flatter the figures: give {kind} images of your own then."
        )
    shared = _shared(held["test"], data) if test is not None else 0
    if shared:
        remarks.append(
            f"{shared} of the {len(held['test'])} test images are also training images, which flatters the figures."
        )
    return Parts(data, held["validation"], held["test"], tuple(remarks))


def _shared(test: ImageSet, train: ImageSet) -> int:
    """How many test images are training images to the last bit."""

    def marks(data: ImageSet) -> list[bytes]:
        found = []
        for start in range(0, len(data), 256):
            images = data.batch(range(start, min(start + 256, len(data))))
            found += [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
        return found

    seen = set(marks(train))
    return sum(mark in seen for mark in marks(test))


def _check(network: nn.Module, parts: Parts, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: give at least 1 image")
    for part in (parts.train, parts.validation, parts.test):
        if part.shape != parts.train.shape:
            raise InputError(
                f"{part.name}: images of shape {part.shape}, but the training images are {parts.train.shape}"
            )
        place = next((p.device for p in network.parameters()), torch.device("cpu"))
        classes = check_model(
            network, part.batch(range(min(8, len(part)))).to(place), part.labels, len(part.class_names)
        )  # fmt: skip
    check_training(parts.train, classes)


def _bare(model: nn.Module) -> nn.Module:
    """The module that a weights file is for: without the standardization put before it."""
    return model.model if isinstance(model, Normalized) else model


def _save(model: nn.Module, file: Path) -> None:
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in _bare(model).state_dict().items()}
    with written_whole(file) as partial:
        save_file(weights, partial, {"format": "pt"})


def _use(model: Any, network: nn.Module, data: Any, defense: Defense, folder: Path) -> str:
    """The command that audits the hardened model again."""
    named = str(model) if isinstance(model, (str, Path)) else "FILE.py:NAME"
    shown = str(data) if isinstance(data, (str, Path)) else "DATA"
    text = f"robust audit {named} {shown} --weights {folder / WEIGHTS} --threat {defense.ball.text}"
    if defense.behind:
        text += f" --behind '{defense.behind}'"
    if isinstance(network, Normalized):
        for option, numbers in (("mean", network.mean), ("std", network.std)):
            text += f" --{option} {','.join(f'{number:.6g}' for number in numbers.flatten().tolist())}"
    return text
