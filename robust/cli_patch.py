"""The command `robust patch`. Imports nothing heavy until it runs."""

from __future__ import annotations

import json
import re
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
        "robust patch demo demo --source stop --target 'speed limit 30' --count 1 --conditions mild\n\n"
        "robust patch signs.py:load_model test.npz --train-data train.npz --source stop --target 'speed limit 30' "
        "--photos photos/\n\n"
        "[bold]Exit codes[/bold]  0 done; 2 bad input; 3 no gradient reaches the patch."
    )(patch)


def patch(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    data: Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)],
    source: Annotated[str, typer.Option(help="Class of the signs that the patch goes on: its name or number.")],
    target: Annotated[
        str | None, typer.Option(help="Class that they shall be read as. Default: any other.", show_default=False)
    ] = None,
    train_data: Annotated[
        str | None, typer.Option(help="Images to make the patch on. Default: half of those in DATA.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="universal: one patch, anywhere on the sign; stickers: where they do most; per-image: one each."
        ),
    ] = "stickers",
    area: Annotated[str, typer.Option(help="Share of the sign that it covers.")] = "10%",
    mask: Annotated[
        str, typer.Option(help="The sign: octagon, circle or rectangle; or a picture, white where stickers may lie.")
    ] = "octagon",
    sign_share: Annotated[float, typer.Option(help="Share of the image's side that the sign takes.")] = 0.8,
    count: Annotated[int, typer.Option(help="How many stickers; 1 is a patch at a fixed place.")] = 2,
    layouts: Annotated[int, typer.Option(help="Layouts of stickers to choose from; 1 takes the usual one.")] = 24,
    conditions: Annotated[
        str, typer.Option(help="Distance, angle, light, blur, noise and JPEG to withstand: none, mild or physical.")
    ] = "physical",
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 300,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    nps: Annotated[float, typer.Option(help="Weight of printability; above 0, only printable colors are used.")] = 0.0,
    tv: Annotated[float, typer.Option(help="Weight of smoothness (total variation).")] = 0.0,
    palette: Annotated[
        Path | None, typer.Option(help="Printable colors, one red,green,blue a line. Default: four-color print.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Views of each image when the patch is measured.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Measure on a random sample of so many images.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photographs of the sign, to try the patch on at full resolution.")
    ] = None,
    distances: Annotated[str, typer.Option(help="Of the camera from the photographed sign, meters.")] = (
        "5,10,20,30,40,60"
    ),
    angles: Annotated[str, typer.Option(help="To the photographs' own direction, degrees.")] = "-30,-15,0,15,30",
    size_cm: Annotated[
        float | None, typer.Option(help="Printed width. Default: as it comes to on a sign of 75 cm.")
    ] = None,
    dpi: Annotated[int, typer.Option(help="Of the print.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the sample, the patch and the views.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report, the patch and the pictures. Default: robust-patches/NAME."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file for the model.")] = None,
    mean: Annotated[str | None, typer.Option(help="Channel means of the model's normalization.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviations of the model's normalization.")] = None,
    resize: Annotated[str | None, typer.Option(help="Resize every image to HxW, such as 224x224.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a pickled checkpoint, which can run any code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print patch.json on standard output.")] = False,
) -> None:
    """Make a printed patch or stickers that turn one class into another, and say how often they do.

    Run the same command again to go on after an interruption.
    """
    share, size = share_of("--area", area), size_of(resize)
    far, sides = numbers_of("--distances", distances, "in meters"), numbers_of("--angles", angles, "in degrees")
    from robust.patches.making import REPORT, make_patch
    from robust.progress import terminal_progress

    settings = (
        data, source, target, train_data, kind, share, mask, sign_share, count, layouts, conditions, steps, batch,
        nps, tv, palette, seed, weights, mean, std, resize,
    )  # fmt: skip
    folder = out or folder_of("robust-patches", model, *map(str, settings))
    try:
        with terminal_progress() as progress:
            made = make_patch(
                model, data, source=source, target=target, train_data=train_data, kind=kind, area=share, mask=mask,
                sign_share=sign_share, count=count, layouts=layouts, conditions=conditions, steps=steps,
                batch=batch, nps=nps, tv=tv, palette=palette, draws=draws, limit=limit, photos=photos,
                distances=far or (), angles=sides or (), size_cm=size_cm, dpi=dpi, seed=seed,
                device=device, out=folder, weights=weights,
                mean=numbers_of("--mean", mean), std=numbers_of("--std", std), resize=size, trust=trust,
                command=command_line(), progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"robust: stopped; the patch so far is in {folder}. Run the same command to go on.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    for remark in made.record["remarks"]:
        print(f"robust: warning: {remark}", file=sys.stderr)
    print(json.dumps(made.record, indent=2) if as_json else f"{_told(made.record)}\n\nreport: {folder / REPORT}")


def share_of(option: str, text: str) -> float:
    """``10%`` or ``0.1`` as 0.1."""
    match = re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise InputError(f"{option} {text}: write a share such as 10% or 0.1")
    return share


def _told(record: dict[str, Any]) -> str:
    from robust.reports.formats import interval, percent

    found, target = record["figures"], record["target"]
    lines = [
        f"{'':<10}{'as ' + target if target else '':<34}{'not as ' + record['source']:<30}"
        f"{found['images']} held-out images, {found['draws']} views each"
        if record["settings"]["kind"] != "per-image"
        else f"{'':<10}{'as ' + target if target else '':<34}not as {record['source']}"
    ]
    rows = {"patch": found["patch"], **found["controls"]}
    for name, row in rows.items():
        cells = [
            "" if (rate := row[key]) is None else f"{percent(rate['value'])} ({interval(rate['low'], rate['high'])})"
            for key in ("targeted", "untargeted")
        ]
        lines.append(f"{name:<10}{cells[0]:<34}{cells[1]}".rstrip())
    lines.append(f"clean signs read right: {percent(found['read']['value'])}")
    photographs = record["photographs"]
    if photographs:
        kinds = photographs["kinds"]["patch"]
        hits = kinds["targeted"] if target else kinds["untargeted"]
        lines.append(f"photographs: {hits} of {kinds['views']} views of {photographs['photographs']} photographs")
    return "\n".join(lines)
