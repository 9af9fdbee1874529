"""The command `robust certify`. Imports nothing heavy until it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robust.cli_values import DATA_HELP, INTERRUPTED, MODEL_HELP, command_line, numbers_of, size_of
from robust.errors import InputError
from robust.places import folder_of


def register(app: typer.Typer) -> None:
    """Make it a command of ``app``."""
    app.command(
        epilog="[bold]Examples[/bold]\n\n"
        "robust certify mymodel.py:load_model path/to/images --sigma 0.25\n\n"
        "robust certify mymodel.py:load_model images.npz --sigma 0.5 --radii 0.25,0.5,1 --limit 500 --beside cohen\n\n"
        "robust certify mymodel.py:load_model images.npz --patch 5% --attack\n\n"
        "[bold]Exit codes[/bold]  0 done; 2 bad input; 3 an attack broke a certificate."
    )(certify)


def certify(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    data: Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)],
    sigma: Annotated[
        float | None, typer.Option(help="Deviation of the Gaussian noise, pixels in 0..1, such as 0.25.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(help="Instead: a patch's area, such as 5%, or 7x7 pixels. Certifies against it.")
    ] = None,
    behind: Annotated[
        str | None,
        typer.Option(help="With --patch: the defense that certifies: masking (PatchCleanser, the default) or bands."),
    ] = None,
    radii: Annotated[
        str | None, typer.Option(help="l2 radii such as 0.25,0.5. Default: sigma times 1, 2 and 3.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Find each image's radius to within this, instead of deciding the radii.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of a false certificate, for each image.")] = 0.001,
    method: Annotated[
        str, typer.Option(help="anytime: stops drawing once the radii are decided; cohen: the fixed procedure.")
    ] = "anytime",
    beside: Annotated[str | None, typer.Option(help="Run this method too, for comparison.")] = None,
    draws: Annotated[int | None, typer.Option(help="Most estimating draws of an image. Default: 100000.")] = None,
    precision: Annotated[
        str, typer.Option(help="float32: the model itself. bfloat16: a faster copy, named in the record.")
    ] = "float32",
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack the defended classifier as well, for an upper bound.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Certify a random sample of so many images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for certify.html, certify.json and certify.jsonl. Default: robust-certificates/NAME."
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file for the model.")] = None,
    mean: Annotated[str | None, typer.Option(help="Channel means of the model's normalization.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviations of the model's normalization.")] = None,
    resize: Annotated[str | None, typer.Option(help="Resize every image to HxW, such as 224x224.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a pickled checkpoint, which can run any code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print certify.json on standard output.")] = False,
) -> None:
    """Prove how far a classifier's images cannot be fooled: by randomized smoothing in l2, or by masks against patches.

    The model should have been trained with the same noise, or under masks. Run the same command again to go on after an
    interruption.
    """
    if (sigma is None) == (patch is None):
        raise InputError("give --sigma for noise in l2, such as 0.25, or --patch for patches, such as 5%: one of them")
    wanted, size = numbers_of("--radii", radii, "such as 0.25,0.5"), size_of(resize)
    subject: dict[str, Any] = {
        "attack": attack, "limit": limit, "seed": seed, "device": device, "weights": weights, "resize": size,
        "mean": numbers_of("--mean", mean), "std": numbers_of("--std", std), "trust": trust,
        "command": command_line(),
    }  # fmt: skip
    if patch is not None:
        _only_for_noise(
            radii=radii, tolerance=tolerance, beside=beside, draws=draws, alpha=None if alpha == 0.001 else alpha,
            method=None if method == "anytime" else method, precision=None if precision == "float32" else precision,
        )  # fmt: skip
        behind = behind or "masking"
        folder = out or folder_of("robust-certificates", model, data, patch, behind, limit, seed, attack, str(weights))
        _certify_patches(model, data, folder, as_json, patch=patch, behind=behind, **subject)
        return
    if behind is not None:
        raise InputError("--behind: goes with --patch; leave it out beside --sigma")
    from robust.defenses.smoothing.arguments import REPORT
    from robust.defenses.smoothing.certifying import certify as run_certify
    from robust.progress import terminal_progress
    from robust.reports.certificate import certificate_text

    # All of them as text, as they were written on the command line.
    settings = (sigma, wanted, tolerance, alpha, draws, precision, limit, seed, weights, device)
    folder = out or folder_of("robust-certificates", model, data, *map(str, settings))
    try:
        with terminal_progress() as progress:
            summary = run_certify(
                model, data, sigma=sigma or 0.0, radii=wanted, tolerance=tolerance, alpha=alpha, method=method,
                beside=beside, draws=draws, precision=precision, out=folder, progress=progress, **subject,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"robust: stopped; what was certified is in {folder}. Run the same command to go on.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    for warning in summary.warnings:
        print(f"robust: warning: {warning}", file=sys.stderr)
    if as_json:
        print(summary.model_dump_json(indent=2))
    else:
        print(f"{certificate_text(summary)}\n\nreport: {folder / REPORT}")


def _only_for_noise(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name}: goes with --sigma; leave it out beside --patch")


def _certify_patches(model: str, data: str, folder: Path, as_json: bool, **settings: Any) -> None:
    from robust.defenses.patch.certifying import SUMMARY, certify_patches
    from robust.progress import terminal_progress

    try:
        with terminal_progress() as progress:
            summary = certify_patches(model, data, out=folder, progress=progress, **settings)
    except KeyboardInterrupt:
        print(f"robust: stopped; what was certified is in {folder}. Run the same command to go on.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    print(summary.model_dump_json(indent=2) if as_json else f"{summary.text()}\n\nrecord: {folder / SUMMARY}")
