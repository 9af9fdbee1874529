"""Checks from what the audit itself found: sentinels, stored images, counts."""

from __future__ import annotations

from collections.abc import Sequence

from robust.checks.sample import record
from robust.summary import CheckRecord


def queries_find_no_more(
    tried: int | None, broken: int, random: bool = False, asked: Sequence[str] = ()
) -> CheckRecord:  # fmt: skip
    """From a query attack on images that stood against every gradient attack; ``tried`` None: it did not run.

    ``random``: one image in 20 may fall to another draw. ``asked``: query attacks that all images meet anyway."""
    passed = None if tried is None else broken <= (max(1, tried // 20) if random else 0)
    detail = _sentinel("the query attack", tried, broken)
    if tried is None and asked:
        detail = f"no query attack followed {' and '.join(asked)}, planned for every image left standing"
    return record(
        "black-box", "No query attack finds what gradients missed", passed, detail,
        "An attack that only sees outputs must not succeed where attacks with full knowledge failed. If it does, the "
        "gradients mislead (gradient masking) and the true robustness is lower.",
    )  # fmt: skip


def transfer_finds_no_more(tried: int | None, broken: int, surrogates: int) -> CheckRecord:
    """From an attack with the gradients of surrogate models, on images still standing; ``tried`` None: it did not run.

    One success in a hundred images tried is let pass: an honest attack may miss what another happens upon.
    """
    passed = None if tried is None else broken <= max(1, round(0.01 * tried))
    detail = _sentinel("the transfer attack", tried, broken)
    if not surrogates:
        detail += ": no surrogate model was named (--surrogate)"
    return record(
        "surrogate", "No surrogate's gradient finds what the model's own missed", passed, detail,
        "Gradients of another model must not find what the model's own missed. If they do, its own mislead (gradient "
        "masking) and the true robustness is lower.",
    )  # fmt: skip


def steps_find_no_more(tried: int | None, broken: int, images: int, random: bool = False) -> CheckRecord:
    """From a longer run on images still standing; ``images`` counts the audit's, of which one in 100 may change.

    ``random``: one in 20."""
    passed = None if tried is None else broken <= max(1, round((0.05 if random else 0.01) * images))
    return record(
        "converged", "More steps change nothing", passed, _sentinel("a fresh, longer run", tried, broken),
        "An attack that still gains from more steps had not converged, and its robust accuracy is too high. Audit with "
        "more effort, such as --attacks \"auto(effort='exhaustive')\".",
    )  # fmt: skip


def eight_bit_survival(survive: int, broken: int) -> CheckRecord:
    passed = None if not broken else survive >= 0.9 * broken
    found = f"{survive} of {broken} adversarial images still fool the model as 8-bit images"
    return record(
        "8-bit", "Successes survive 8-bit color", passed,
        found if broken else "nothing broken",
        "An image file holds 256 levels a channel. Successes that need finer steps are real for the model but cannot "
        "be stored in a picture.", weight="advice",
    )  # fmt: skip


def evidence_replays(replayed: int, failed: int, random: bool = False) -> CheckRecord:
    """``random``: each image was put to a majority over fresh draws, of which one in 10 may turn over."""
    how = "by a majority of fresh draws" if random else "in float32"
    return record(
        "replay", "Every stored adversarial image still fools the model", failed <= (0.1 * replayed if random else 0),
        f"{replayed} images read back from the ledger and run again {how}: {replayed - failed} hold",
        "The count of broken images rests on these stored images and nothing else; the command 'robust verify' runs "
        "them again.",
    )  # fmt: skip


def _sentinel(what: str, tried: int | None, broken: int) -> str:
    if tried is None:
        return f"{what} did not run"
    return f"{what} breaks {broken} of {tried} images still standing" if tried else "no image is left standing"
