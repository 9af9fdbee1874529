"""Defenses against patches on real traffic signs: clean, patch-attacked and certified accuracy, before and after.

    ROBUST_DATA=FOLDER python benchmarks/patch_hardening.py --out runs/patch-hardening

Three copies of the plain classifier (examples/gtsrb_model.py) are trained on the same images: against patches where the
loss is steepest (roa), under masks (masking) and on bands (bands). Each is judged on the same random test images, bare
and behind what it is meant for. Attacked accuracy is what stands after all of these, whichever fits:

- `auto` on the bare classifier, whose images are then tried on the defended one too;
- the attack that knows PatchCleanser's masks (robust/defenses/patch/attacking.py);
- PGD, 40 steps from 2 starts, on the margin of the summed probabilities behind the votes.

Successes count only inside the threat model and on the judged classifier itself. A certified image that falls is an
error and stops the run. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robust.attacks import PGD
from robust.attacks.registry import build
from robust.batching import batches
from robust.data import ImageSet, load_data
from robust.defenses.patch import BandSmoothing, CertifiesPatches, MaskedClassifier
from robust.defenses.patch.attacking import cleansing_attack
from robust.defenses.training import method
from robust.defenses.training.defense import Defense
from robust.evidence import confirm
from robust.progress import Plain
from robust.stats import mcnemar, rate
from robust.threats import ThreatModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gtsrb_data import CLASS_NAMES, Signs, read_signs, split_by_track
from gtsrb_model import TrafficSignNet, load_model

WEIGHTS, TRAINED = "weights.safetensors", "trained.json"
# What is judged: the trained copy, and what it is used behind.
SUBJECTS = {
    "plain": ("plain", None), "plain, masks": ("plain", "masks"), "roa": ("roa", None), "roa, masks": ("roa", "masks"),
    "masking": ("masking", None), "masking, masks": ("masking", "masks"), "bands, votes": ("bands", "votes"),
}  # fmt: skip


def images(signs: Signs, limit: int | None = None) -> ImageSet:
    return load_data((signs.images, signs.labels), class_names=CLASS_NAMES).limited(limit, 0)


def defense(chosen: argparse.Namespace, name: str) -> Defense:
    epochs = chosen.band_epochs if name == "bands" else chosen.epochs
    return method(name)(chosen.threat, epochs=epochs, learning_rate=chosen.learning_rate, seed=chosen.seed)


def trained(chosen: argparse.Namespace, name: str) -> nn.Module:
    """The plain classifier, or a copy trained by the method of this name; kept in its folder."""
    model = load_model(chosen.weights)
    if name == "plain":
        return model
    folder = chosen.out / name
    if not (folder / WEIGHTS).is_file():
        signs, held = split_by_track(read_signs(chosen.data, "train"), 0.1, 0)
        found = defense(chosen, name).fit(
            model, images(signs, chosen.images), images(held), out=folder, progress=Plain()
        )  # fmt: skip
        history = found.history
        save_file({key: value.contiguous() for key, value in found.model.state_dict().items()}, folder / WEIGHTS)
        record = {"wall": history.seconds, "processor": history.epochs[-1].processor, "best": history.best}
        (folder / TRAINED).write_text(json.dumps(record) + "\n")
    model = TrafficSignNet()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def deployed(model: nn.Module, behind: str | None, chosen: argparse.Namespace) -> nn.Module:
    if behind is None:
        return model
    return defense(chosen, "masking" if behind == "masks" else "bands").deployed(model, (32, 32))


def judged(chosen: argparse.Namespace, label: str, test: ImageSet, threat: ThreatModel) -> dict[str, Any]:
    """Which test images are right, stand, and are certified; kept in a file, batch by batch."""
    file = chosen.out / f"{label.replace(', ', '-')}.json"
    record: dict[str, Any] = {
        "clean": [], "standing": [], "certified": [], "passes": [], "fell_to": {}, "processor": 0.0
    }  # fmt: skip
    if file.is_file():
        record = json.loads(file.read_text())
    name, behind = SUBJECTS[label]
    bare = trained(chosen, name)
    model = deployed(bare, behind, chosen)
    for ids in batches(list(range(len(record["clean"]), len(test))), chosen.batch):
        start = time.process_time()
        points, labels = test.batch(ids), test.labels[ids]
        with torch.no_grad():
            right = model(points).argmax(1) == labels
        certified = torch.zeros_like(right)
        if isinstance(model, CertifiesPatches):
            certificates = model.certify(points)
            certified = certificates.correct(labels)
            record["passes"] += certificates.passes.tolist()
        standing = right.clone()
        for attack, claims in attempts(chosen, bare, model, points, labels, threat):
            broken = confirm(model, points, claims, labels, threat).broken & standing
            if bool((broken & certified).any()):
                sys.exit(f"{label}: a certified image fell to {attack}")
            record["fell_to"][attack] = record["fell_to"].get(attack, 0) + int(broken.sum())
            standing &= ~broken
        record["clean"] += right.tolist()
        record["standing"] += standing.tolist()
        record["certified"] += certified.tolist()
        record["processor"] += time.process_time() - start
        file.write_text(json.dumps(record) + "\n")
        print(f"{label}: {len(record['clean'])} images", file=sys.stderr, flush=True)
    return record


def attempts(
    chosen: argparse.Namespace, bare: nn.Module, model: nn.Module, points: Tensor, labels: Tensor, threat: ThreatModel
) -> list[tuple[str, Tensor]]:
    """What each attack that fits makes of the images, certified ones too."""
    auto = build("auto", norm=threat.norm, eps=threat.eps, seed=chosen.seed)
    made = [("auto on the bare classifier", auto(bare, points, labels))]
    if isinstance(model, MaskedClassifier):
        made.append(("the attack that knows the masks", cleansing_attack(model, points, labels, seed=chosen.seed)))
    if isinstance(model, BandSmoothing):
        pgd = PGD(threat.eps, norm=threat.norm, seed=chosen.seed, steps=40, restarts=2, loss="margin")
        made.append(("PGD on the probabilities behind the votes", pgd(Summed(model), points, labels)))
    return made


class Summed(nn.Module):
    """The sum of probabilities that a vote of bands comes from: `auto` wanders on whole votes, which rise in steps."""

    def __init__(self, voting: BandSmoothing) -> None:
        super().__init__()
        self.voting = voting
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self.voting.chances(images)


def percent(values: list[bool]) -> str:
    found = rate(sum(values), len(values))
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def row(label: str, record: dict[str, Any], first: dict[str, Any]) -> str:
    """One line of the table; p is McNemar's exact test of the standing images against those of the plain classifier."""
    pairs = list(zip(first["standing"], record["standing"], strict=True))
    p = mcnemar(pairs.count((True, False)), pairs.count((False, True)))
    certified = percent(record["certified"]) if record["passes"] else ""
    passes = f"{sum(record['passes']) / len(record['passes']):.0f}" if record["passes"] else ""
    return (
        f"| {label} | {percent(record['clean'])} | {percent(record['standing'])} | {certified} | {p:.2g} | {passes} | "
        f"{'; '.join(f'{name}: {count}' for name, count in record['fell_to'].items())} | {record['processor']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=Path(os.environ.get("ROBUST_DATA", "data")))
    add("--weights", type=Path, help="of the plain classifier (default: as examples/gtsrb_model.py finds them)")
    add("--out", type=Path, default=Path("runs/patch-hardening"))
    add("--threat", default="patch:5%")
    add("--images", type=int, default=8000, help="training images")
    add("--epochs", type=int, default=6)
    add("--band-epochs", type=int, default=20, help="for bands, whose steps are cheap")
    add("--learning-rate", type=float, default=0.1)
    add("--test", type=int, default=200, help="test images to judge by; 0 trains only")
    add("--batch", type=int, default=50)
    add("--seed", type=int, default=0)
    add("--subjects", default="; ".join(SUBJECTS), help="apart by semicolons")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    subjects = [text.strip() for text in chosen.subjects.split(";")]
    for name in dict.fromkeys(SUBJECTS[label][0] for label in subjects):
        trained(chosen, name)
    if not chosen.test:
        return
    test = images(read_signs(chosen.data, "test"), chosen.test)
    threat = ThreatModel.parse(chosen.threat).fitted(test.shape)
    print("| classifier | clean | attacked | certified | p | passes | fell to | processor s |")
    print("|---|---|---|---|---|---|---|---|")
    first = judged(chosen, "plain", test, threat)
    for label in subjects:
        print(row(label, judged(chosen, label, test, threat), first), flush=True)


if __name__ == "__main__":
    main()
