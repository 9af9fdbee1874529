"""How often a random model is misled: rates over fresh draws, image by image and in the mean.

Per image, of the unattacked image, the adversarial image in the ledger and the end of an attack on the expected margin
(PGD over draws, never stopped early), the one misread most often in 20 draws is taken. The share of 100 fresh draws
that misread it is the image's rate. The mean of what is left is the expected robust accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robust.attacks.pgd_eot import PGDEOT
from robust.attacks.registry import build
from robust.batching import batches
from robust.checking import Charged, keep, sample_of
from robust.checks.sample import record
from robust.counting import CountedModel
from robust.draws import ATTACK_DRAWS, VOTES, Stream, Voting
from robust.errors import NoGradientError
from robust.ledger import Ledger
from robust.memory import Fitting
from robust.models import evaluating
from robust.plan import standard_attacks
from robust.stats import clopper_pearson, mean_rate
from robust.summary import CheckRecord, MeanRate, RandomizedRecord
from robust.threats import ThreatModel

if TYPE_CHECKING:
    from robust.running import Job

DRAWS = 100
_CHOOSING = 20
_APART = 0.05
_WATCHED = 16
_TITLE = "Success is settled over draws"
_MEANING = (
    "Of a random model an attack's success is a rate. An attack that follows the expected loss must find at least what "
    "attacks on single draws find, and twice its steps and draws must not find much more; else the expected accuracy "
    "is too high."
)


def measure_rates(job: Job, threat: ThreatModel) -> None:
    """Enter the rates of a random model into the ledger, batch by batch, and the check that watches over them."""
    if not job.random:
        detail = "the model is deterministic: one pass settles each image"
        keep(job, threat.text, record("draws", _TITLE, True, detail, _MEANING))
        return
    assert isinstance(job.model, Voting)
    ids = list(range(len(job.data)))
    job.progress.stage(f"{threat.text}  rates over draws", len(ids))
    stream = Stream(job.seed + 7)
    for number, batch in enumerate(batches(ids, job.batch_size)):
        key = _key(threat.text, number)
        if job.ledger.meta(key) is None:
            if job.out_of_time:
                return
            with Charged(job, threat) as charged:
                counts = _rates(job, threat, batch, stream)
            charged.to("draws", len(batch), 1 + number)
            job.ledger.set_meta(key, counts)
        job.progress.advance(len(batch))
    job.ledger.set_meta(f"draws {threat.text} batches", number + 1)
    if job.ledger.checks(threat.text).get("draws") is None and not job.out_of_time:
        found = _watch(job, threat, stream)
        if found is not None:
            keep(job, threat.text, found)


def randomized_record(ledger: Ledger, threat: str) -> RandomizedRecord | None:
    """What the ledger says of a random model; None for others, and where the rates were not finished."""
    parts = ledger.meta(f"draws {threat} batches")
    if parts is None:
        return None
    counts = [pair for number in range(parts) for pair in ledger.meta(_key(threat, number))]
    clean, attacked = ([pair[i] for pair in counts] for i in (0, 1))
    bounds = [clopper_pearson(wrong, DRAWS) for wrong in attacked]
    return RandomizedRecord(
        draws=DRAWS, votes=VOTES, attack_draws=ATTACK_DRAWS,
        clean_accuracy=_mean(clean), robust_accuracy=_mean(attacked),
        mostly_wrong=sum(low > 0.5 for low, _ in bounds), mostly_right=sum(high < 0.5 for _, high in bounds),
        undecided=sum(low <= 0.5 <= high for low, high in bounds),
    )  # fmt: skip


def _mean(wrong: list[int]) -> MeanRate:
    return mean_rate(sum(DRAWS - count for count in wrong) / DRAWS, len(wrong))


def _key(threat: str, number: int) -> str:
    return f"draws {threat} {number}"


def _rates(job: Job, threat: ThreatModel, ids: list[int], stream: Stream) -> list[list[int]]:
    """Per image, of 100 draws each, how many misread it unattacked and at its worst."""
    images, labels = job.load(ids)
    network = _network(job)
    candidates = [images, _climbed(job, threat, images, labels), _stored(job, threat, ids, images)]
    early = torch.stack([_wrong(network, points, labels, _CHOOSING, stream) for points in candidates])
    worst = torch.stack(candidates)[early.argmax(0), torch.arange(len(ids), device=images.device)]
    clean, attacked = (_wrong(network, points, labels, DRAWS, stream) for points in (images, worst))
    return [list(pair) for pair in zip(clean.tolist(), attacked.tolist(), strict=True)]


def _climbed(job: Job, threat: ThreatModel, images: Tensor, labels: Tensor, more: int = 1) -> Tensor:
    attack = PGDEOT(threat.eps, norm=threat.norm, seed=job.seed, steps=20 * more, eot=more)
    try:
        return torch.cat(Fitting().run(lambda part: attack(job.counted, images[part], labels[part]), len(images)))
    except NoGradientError:
        return images.clone()


def _stored(job: Job, threat: ThreatModel, ids: list[int], images: Tensor) -> Tensor:
    """The adversarial images of the ledger that lie inside the threat model; the images themselves elsewhere."""
    points, rows = images.clone(), {row.image: row for row in job.ledger.rows(threat.text) if row.broken_by}
    for place, image in enumerate(ids):
        kept = job.ledger.adversarial(image, threat.text) if image in rows else None
        if kept is not None:
            points[place] = torch.from_numpy(kept).to(points)
    return points


def _wrong(network: nn.Module, points: Tensor, labels: Tensor, draws: int, stream: Stream) -> Tensor:
    """How many of so many fresh draws misread each point, (N,) int64."""
    total = torch.zeros_like(labels)
    with evaluating(network), torch.no_grad(), stream.next(points.device):
        for _ in range(draws):
            total += network(points).argmax(1) != labels
    return total


def _network(job: Job) -> nn.Module:
    assert isinstance(job.model, Voting)
    return job.model.model


def _watch(job: Job, threat: ThreatModel, stream: Stream) -> CheckRecord | None:
    """One draw against many, and twice the effort against the effort made, on a sample."""
    sample = sample_of(job, threat)
    if sample is None:
        return None
    images, labels, network = sample.images[:_WATCHED], sample.labels[:_WATCHED], _network(job)
    name = standard_attacks(threat)[-1]
    plain = CountedModel(network)
    with Charged(job, threat) as charged, stream.next(images.device):
        try:
            single = build(name, norm=threat.norm, eps=threat.eps, seed=job.seed)(plain, images, labels)
        except NoGradientError:
            single = images.clone()
        lucky = int((_wrong(network, single, labels, 1, stream) > 0).sum())
        climbed = [_climbed(job, threat, images, labels, more) for more in (1, 2)]
        one, many, twice = (
            float(_wrong(network, points, labels, DRAWS, stream).double().mean()) / DRAWS
            for points in (single, *climbed)
        )
    charged.cost = charged.cost + plain.passes
    charged.to("draws", len(images))
    return record(
        "draws", _TITLE, many >= one - _APART and twice <= many + _APART,
        f"of {len(images)} images {name} without averaging misleads {lucky} in one fresh draw, {one:.1%} over {DRAWS}; "
        f"PGD over {ATTACK_DRAWS} draws a step {many:.1%}; with twice the steps and draws {twice:.1%}", _MEANING,
    )  # fmt: skip
