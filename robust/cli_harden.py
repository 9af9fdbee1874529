"""The command `robust harden`. Imports nothing heavy until it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robust.cli_values import INCONCLUSIVE, INTERRUPTED, command_line, first_process, numbers_of, seconds_of, size_of
from robust.places import stem_of

_METHOD_HELP = (
    "pgd, trades, mart, free, fast, nfgsm; gaussian, smoothadv, consistency (to be smoothed); distillation (masks "
    "gradients); against patches roa, and masking and bands, to be used behind them. Default: pgd, or roa. With its "
    "own settings: 'trades(beta=6)'."
)


def harden(
    model: Annotated[str, typer.Argument(help="As for `robust audit`; must have weights to train.", metavar="MODEL")],
    data: Annotated[str, typer.Argument(help="Training images, as for `robust audit`.", metavar="DATA")],
    method: Annotated[str | None, typer.Option(help=_METHOD_HELP)] = None,
    threat: Annotated[
        str, typer.Option(help="What to withstand: NORM:EPS with NORM linf, l2 or l1, or patch:5%.")
    ] = "linf:8/255",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 15,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all that is made. Default: robust-hardened/NAME-METHOD.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Images that choose the best epoch. Default: a tenth of DATA, held out.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Images for the audits before and after. Default: a tenth of DATA, held out.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Audit a random sample of so many test images.")] = 500,
    budget: Annotated[str | None, typer.Option(help="Longest time for each audit: 90s, 10m, 1.5h.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a training step.")] = 128,
    learning_rate: Annotated[
        float | None, typer.Option(help="Its peak. Default: 0.1 for sgd, 0.002 for adamw.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    schedule: Annotated[str, typer.Option(help="Of the learning rate: one-cycle, cosine or constant.")] = "one-cycle",
    averaging: Annotated[str, typer.Option(help="Of the weights: ema, swa or none.")] = "ema",
    awp: Annotated[float, typer.Option(help="Adversarial weight perturbation, such as 0.005.")] = 0.0,
    augment: Annotated[
        list[str] | None, typer.Option(help="shift:2, flip, light:0.3, turn:10 or erase:8. Repeatable, in this order.")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(help="Of distillation: those at which the report shows what each attack finds.")
    ] = "1,10,20,50,100",
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better one.")] = None,
    guard: Annotated[bool, typer.Option(help="Roll back on catastrophic overfitting.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from new random weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of the training and the audits.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the training: auto, bfloat16 or float32.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Weights file to start from.")] = None,
    mean: Annotated[str | None, typer.Option(help="Channel means of the model's normalization.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviations of the model's normalization.")] = None,
    resize: Annotated[str | None, typer.Option(help="Resize every image to HxW, such as 224x224.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a pickled checkpoint, which can run any code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print card.json on standard output.")] = False,
) -> None:
    """Train a copy of a classifier to withstand an attacker, and audit it before and after on the same images.

    Run the same command again to go on after an interruption: the model will be the same.
    """
    settings: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "optimizer": optimizer,
        "schedule": schedule, "averaging": averaging, "awp": awp, "augment": augment, "patience": patience,
        "guard": guard, "fresh": fresh, "precision": precision,
    }  # fmt: skip
    changed = {name: value for name, value in settings.items() if value != _DEFAULTS.get(name)}
    seconds, size = seconds_of(budget), size_of(resize)
    from robust.hardening import harden as run
    from robust.progress import terminal_progress

    folder = out or Path("robust-hardened") / f"{stem_of(model)}-{_named(method or threat)}"
    try:
        with terminal_progress() as progress:
            result = run(
                model, data, validation, test, method=method, threat=threat, out=folder, limit=limit, seed=seed,
                device=device, budget=seconds, weights=weights, mean=numbers_of("--mean", mean),
                std=numbers_of("--std", std), temperatures=numbers_of("--temperatures", temperatures) or (),
                resize=size, trust=trust, command=command_line(), progress=progress, **changed,
            )  # fmt: skip
    except KeyboardInterrupt:
        if first_process():
            print(f"robust: stopped; what was computed is in {folder}. Run the same command to go on.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    card = result.card
    for remark in card["remarks"]:
        print(f"robust: warning: {remark}", file=sys.stderr)
    print(json.dumps(card, indent=2) if as_json else _told(card, folder))
    raise typer.Exit(INCONCLUSIVE if "inconclusive" in (result.before.verdict, result.after.verdict) else 0)


# A method's own defaults may differ from the general ones (distillation starts afresh), so only what was changed on
# the command line is passed on. --epochs always is.
_DEFAULTS: dict[str, Any] = {
    "batch_size": 128, "learning_rate": None, "optimizer": "sgd", "schedule": "one-cycle", "averaging": "ema",
    "awp": 0.0, "augment": None, "patience": None, "guard": True, "fresh": False, "precision": "auto",
}  # fmt: skip


def _named(method: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in method).strip("-")


def _told(card: dict[str, Any], folder: Path) -> str:
    figures = card["figures"]
    lines = [f"{'':<24}{'before':>9}{'after':>9}   p (McNemar), {figures['images']} images"]
    for key, label in (("clean", "clean"), ("robust", f"robust, {card['threat']}")):
        row = figures[key]
        lines.append(
            f"{label:<24}{row['before']['value']:>9.1%}{row['after']['value']:>9.1%}   {row['p']:.2g}"
        )  # fmt: skip
    certified = figures["certified"]
    if any(certified.values()):
        shown = (f"{found['value']:.1%}" if found else "none" for found in certified.values())
        lines.append(f"{'certified, ' + card['threat']:<24}{''.join(f'{text:>9}' for text in shown)}")
    verdict = figures["verdict"]
    lines.append(f"{'verdict':<24}{verdict['before']:>9}{verdict['after']:>9}")
    return "\n".join([*lines, "", f"weights: {folder / 'weights.safetensors'}", f"report: {folder / 'report.html'}"])


def register(app: typer.Typer) -> None:
    """Make it a command of ``app``."""
    app.command(
        epilog="[bold]Example[/bold]\n\n"
        "robust harden mymodel.py:load_model train/ --test test/ --method trades --threat linf:8/255 --epochs 15\n\n"
        "torchrun --nproc-per-node 4 -m robust harden mymodel.py:load_model train/   (on four GPUs)\n\n"
        "[bold]Exit codes[/bold]  0 done; 2 bad input; 3 inconclusive."
    )(harden)
