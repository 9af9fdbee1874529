"""The list of all checks: the one place where their names, order, thresholds and reasons stand together.

``docs/checks.md`` holds :func:`table` and is tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One check. ``item`` numbers the pitfall it answers in the list of audit diagnostics, 11 to 29."""

    name: str
    item: str
    measures: str
    fails: str
    weight: str
    failing: str


CATALOG = (
    Entry(
        "clean", "11", "accuracy unattacked", "below 20 % or 1.5 times chance", "advice",
        "labels or normalization are wrong",
    ),
    Entry(
        "logits", "12", "range and sum of the outputs", "all lie in [0, 1] and sum to 1", "evidence",
        "a softmax inside the model saturates and hides the gradient",
    ),
    Entry(
        "classes", "16", "number of classes; images on which the ratio of logits (DLR) is undefined", "any image",
        "advice", "attacks that rest on DLR are weaker than their name",
    ),
    Entry(
        "deterministic", "13", "5 passes over the same images", "a prediction changes, or logits move by over 1e-4 of "
        "their length", "advice", "the model draws random numbers; it is attacked and judged over draws (see `draws`)",
    ),
    Entry(
        "state", "11", "buffers, attributes and answers after other passes, and while a gradient is taken",
        "anything is kept, or logits move by over 1e-4 of their length (5 % with a gradient)", "evidence",
        "the model remembers images or tells an attack from use",
    ),
    Entry(
        "batch", "11", "up to 32 images alone and together", "a prediction differs, or logits move by over 5 % of "
        "their length (random: mean logits differ by over 2 standard errors)", "evidence",
        "answers depend on the other images of the batch",
    ),
    Entry(
        "dynamic", "15", "tensors read by gradients walked backward inside a pass", "any", "evidence",
        "the model optimizes while it answers; attacks see one pass of it",
    ),
    Entry(
        "gradients", "14", "gradient of cross-entropy and of the margin, per image", "missing, not finite, or zero for "
        "over 1 % of the images", "evidence (advice where BPDA answers it)", "gradient attacks are blind",
    ),
    Entry(
        "stable", "23", "cosine of the gradient at the image and at a random point eps/16 away (median)", "below 0.3 "
        "(random: of that between two draws)", "evidence (advice where BPDA answers it)", "shattered gradients",
    ),
    Entry(
        "bpda", "26", "the two checks above on a copy whose front has another backward function",
        "either fails, or later attacks break over 2 % (at least 2) more",
        "evidence", "the stand-in is no guide either; give a better backward function",
    ),
    Entry(
        "unbounded", "19", "PGD bounded by [0, 1] alone", "over 2 % of the images (at least 2) stand", "evidence",
        "attacks do not work on this model",
    ),
    Entry(
        "order", "17", "images broken by noise (10 draws; of a patch 1), FGSM and PGD-20",
        "PGD breaks fewer than FGSM, or FGSM fewer than "
        "noise, by over 1 % (random: 5 %; at least one)", "evidence", "the gradient points the wrong way",
    ),
    Entry(
        "growth", "20", "PGD-20 at eps/4, eps/2, eps and 2 eps, each afresh", "success falls by over 2 %", "evidence",
        "the attack is badly tuned or misled",
    ),
    Entry(
        "agreement", "25", "PGD-20 by cross-entropy and by the margin", "they differ by over 15 % of the images",
        "evidence", "the scale of the logits hides one loss's gradient",
    ),
    Entry(
        "silent", "22", "points inside the ball that PGD passed, against what it returned", "an image was fooled on "
        "the way and came back unbroken", "evidence",
        "successes are lost, or the model answers otherwise when asked again",
    ),
    Entry(
        "transfer", "18", "PGD on a small substitute trained on the model's answers", "it breaks over 2 % (at least 3) "
        "of the images that PGD-20 on the model did not", "evidence", "the gradient misleads",
    ),
    Entry(
        "surrogate", "18", "MI/DI/TI attack with the gradients of the models named as --surrogate",
        "it breaks over 1 % (at least 2) of the images standing", "evidence", "the gradient misleads",
    ),
    Entry(
        "black-box", "17",
        "Square (of a patch its own random search) on up to 100 images standing; not in l0, where Sparse-RS is an "
        "attack on all", "it breaks any",
        "evidence", "the gradient misleads",
    ),
    Entry(
        "converged", "21", "a longer run on up to 100 images standing", "it breaks over 1 % of all audited images",
        "evidence", "attacks had not converged",
    ),
    Entry(
        "draws", "13", "misclassification over 100 fresh draws: EOT against one-draw attacks, and with twice the steps "
        "and draws", "EOT finds less by over 5 points, or the doubled run more by over 5 points", "evidence",
        "the expected accuracy of a random model is too high",
    ),
    Entry(
        "8-bit", "24", "broken images with an adversarial image of 256 levels", "below 90 %", "advice",
        "successes do not survive in an image file",
    ),
    Entry(
        "replay", "24", "every stored adversarial image, read back and run again in another batch size", "one no "
        "longer holds (random: 10 % do not, by a majority of fresh draws)", "evidence",
        "the count of broken images is wrong",
    ),
    Entry(
        "worst-case", "28", "right unattacked, less broken by any attack, against the count standing", "they differ",
        "evidence", "successes were not all counted",
    ),
    Entry(
        "gradient-free", "27", "attacks that see scores only, and decisions only", "not run, where one kind is missing",
        "advice", "the report says so",
    ),
    Entry(
        "complete", "29", "attacks that ran to their end", "not run, where one failed, was skipped or cut off",
        "evidence", "the verdict is inconclusive; gates fail closed",
    ),
)  # fmt: skip

CHECK_NAMES = tuple(entry.name for entry in CATALOG)


def table() -> str:
    """The list as a table in Markdown."""
    head = ["| item | check | measures | fails if | weight | failing means |", "|---|---|---|---|---|---|"]
    rows = [
        f"| {entry.item} | {entry.name} | {entry.measures} | {entry.fails} | {entry.weight} | {entry.failing} |"
        for entry in CATALOG
    ]
    return "\n".join(head + rows) + "\n"
