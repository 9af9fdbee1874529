"""The `robust` command. Imports nothing heavy until a command runs, so that help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from robust.cli_certify import register as register_certify
from robust.cli_harden import register as register_harden
from robust.cli_patch import register as register_patch
from robust.cli_values import (
    BAD_INPUT,
    DATA_HELP,
    GATE_FAILED,
    INCONCLUSIVE,
    INTERRUPTED,
    MODEL_HELP,
    after_the_first,
    command_line,
    numbers_of,
    seconds_of,
    size_of,
)  # fmt: skip
from robust.errors import InputError, OtherAuditError, RobustError, unknown
from robust.places import folder_of

if TYPE_CHECKING:
    from robust.summary import AuditSummary

app = typer.Typer(
    name="robust",
    help="Tell how easily an image classifier can be fooled, and whether that figure can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "robust audit\n\n"
    "robust audit mymodel.py:load_model path/to/images --threat linf:8/255 --threat l2:0.5 --limit 1000\n\n"
    "robust audit torchvision:resnet50 val/ --resize 224x224 --limit 200 --budget 30m --fail-under 0.4\n\n"
    "[bold]Exit codes[/bold]  0 done, and the gate held; 1 the gate failed; 2 bad input; 3 inconclusive."
)
def audit(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="[MODEL]", show_default=False)] = "demo",
    data: Annotated[str, typer.Argument(help=DATA_HELP, metavar="[DATA]", show_default=False)] = "",
    threat: Annotated[
        list[str] | None,
        typer.Option(
            help="Threat model: NORM:EPS with NORM linf, l2, l1 or l0; patch:AREA such as patch:5% or patch:7x7; or "
            "corruptions, the 15 common ones at 5 severities. Repeatable. Default: linf:8/255, of the demo also "
            "patch:2% (unless --attacks are named)."
        ),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attacks",
            help="An attack instead of the standard list, such as 'pgd(steps=100)'. Repeatable, cheapest first.",
        ),
    ] = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(
            help="A model like the audited one, named like MODEL: what its gradients find must not fool the audited "
            "one where its own found nothing. Repeatable."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What the errors under corruptions are relative to (mCE): a model, named like MODEL, or the "
            "audit.json of another audit of the same images."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Audit a random sample of so many images.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop starting new work after this time: 90s, 10m, 1.5h.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of every attack.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Images at a time. Default: fitted to the model.")] = None,
    effort: Annotated[str, typer.Option(help="Of the standard list: quick, standard or exhaustive.")] = "standard",
    precision: Annotated[
        str,
        typer.Option(
            help="How attacks may search: auto (a faster copy of the model, in bfloat16 where that pays), float32, or "
            "plain (the model itself). What they find is decided by the model itself."
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, audit.json and ledger.sqlite. Default: robust-audits/NAME."),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Gate: exit 1 unless robust accuracy (and mean accuracy under corruptions) reaches this everywhere, "
            "and is not suspect."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for the model: safetensors or a checkpoint.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Channel means of the model's normalization, such as 0.49,0.48,0.45.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviations of the model's normalization.")] = None,
    resize: Annotated[str | None, typer.Option(help="Resize every image to HxW, such as 224x224.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a pickled checkpoint, which can run any code.")] = False,
    bpda: Annotated[
        list[str] | None,
        typer.Option(
            help="Sub-module without a useful gradient, such as 'preprocess': attacks take it for the identity. "
            "Repeatable."
        ),
    ] = None,
    behind: Annotated[
        str | None,
        typer.Option(
            help="Audit the model behind a defense against the largest patch of the threats, whose certificates are "
            "the lower bound: masking (PatchCleanser) or bands."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json on standard output.")] = False,
) -> None:
    """Attack a classifier on labeled images, and report how often it can be fooled.

    Without MODEL and DATA the bundled traffic-sign demo is audited. Run the same command again to go on after an
    interruption: nothing that was computed is lost.
    """
    if not data:
        if model != "demo":
            raise InputError(
                "DATA is missing: give a folder with a sub-folder per class, an .npz, or torchvision:NAME@ROOT"
            )
        data = "demo"
    seconds, size = seconds_of(budget), size_of(resize)
    _check_gate(fail_under)
    from robust.auditing import audit as run_audit
    from robust.progress import terminal_progress
    from robust.request import default_threats

    threats = threat or default_threats(model, data, attacks)
    folder = out or folder_of(
        "robust-audits",
        model,
        data,
        list(threats),
        seed,
        limit,
        *(surrogate or ()),
        *(given for given in (baseline, behind) if given),
    )

    def run(folder: Path) -> AuditSummary:
        with terminal_progress() as progress:
            return run_audit(
                model, data, threats, attacks=attacks, surrogates=surrogate or (), limit=limit, seed=seed,
                device=device, batch_size=batch_size, budget=seconds, effort=effort, precision=precision,
                out=folder, weights=weights, mean=numbers_of("--mean", mean), std=numbers_of("--std", std), resize=size,
                trust=trust, bpda=bpda or (), baseline=baseline, behind=behind, command=command_line(),
                progress=progress,
            )  # fmt: skip

    try:
        summary, folder = (run(folder), folder) if out else _first_that_fits(folder, run)
    except KeyboardInterrupt:
        print(f"robust: stopped; what was computed is in {folder}. Run the same command to go on.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _tell(summary, folder, as_json)
    raise typer.Exit(_exit_code(summary, fail_under))


def _first_that_fits(folder: Path, run: Callable[[Path], AuditSummary]) -> tuple[AuditSummary, Path]:
    """Run in the default folder, or the next numbered one that does not hold the audit of, say, older weights."""
    for number in count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            return run(place), place
        except OtherAuditError:
            continue
    raise AssertionError("unreachable")


register_certify(app)
register_harden(app)
register_patch(app)


@app.command(epilog="[bold]Example[/bold]\n\nrobust report robust-audits/demo-1a2b3c4d")
def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit.", metavar="DIR")]) -> None:
    """Write report.html of a finished audit again, from its ledger and audit.json alone."""
    from robust.ledger import Ledger
    from robust.reports import write_report

    summary = _read_summary(folder)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        write_report(summary, ledger, folder / "report.html")
    print(folder / "report.html")


@app.command(
    epilog="[bold]Example[/bold]\n\nrobust verify robust-audits/demo-1a2b3c4d demo\n\n"
    "[bold]Exit codes[/bold]  0 all hold; 1 some do not; 2 bad input."
)
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.", metavar="DIR")],
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    weights: Annotated[Path | None, typer.Option(help="Weights file for the model.")] = None,
    mean: Annotated[str | None, typer.Option(help="Channel means of the model's normalization.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviations of the model's normalization.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="Load a pickled checkpoint, which can run any code.")] = False,
    behind: Annotated[str | None, typer.Option(help="The defense that was audited, as in `robust audit`.")] = None,
) -> None:
    """Run every stored adversarial image of an audit again on the model, in float32."""
    summary = _read_summary(folder)
    if not summary.threats:
        raise InputError(
            f"{folder}: holds no adversarial images, only accuracies under corruptions; to check these, run the same "
            "audit again in another folder"
        )
    from robust.auditing import verify_audit

    results = verify_audit(
        folder,
        model,
        device=device,
        weights=weights,
        mean=numbers_of("--mean", mean),
        std=numbers_of("--std", std),
        trust=trust,
        behind=behind,
    )
    failed = 0
    for result in summary.threats:
        found = results[result.threat.text]
        failed += len(found.failed)
        print(f"{result.threat.text}: {found.replayed - len(found.failed)} of {found.replayed} adversarial images hold")
        if found.failed:
            print(f"  do not hold: images {', '.join(map(str, found.failed[:20]))}")
    raise typer.Exit(GATE_FAILED if failed else 0)


@app.command(
    "attacks", epilog="[bold]Examples[/bold]\n\nrobust attacks\n\nrobust attacks --norm l2 --knowledge decision"
)
def list_attacks(
    norm: Annotated[str | None, typer.Option(help="Only attacks for this norm: linf, l2, l1, l0 or patch.")] = None,
    knowledge: Annotated[
        str | None, typer.Option(help="Only attacks with: none, white-box, score or decision.")
    ] = None,
) -> None:
    """List all attacks: our own, and those of ART and Foolbox by name."""
    for kind, value, valid in (
        ("norm", norm, ("linf", "l2", "l1", "l0", "patch")),
        ("knowledge", knowledge, ("none", "white-box", "score", "decision")),
    ):
        if value is not None and value not in valid:
            raise unknown(kind, value, valid)
    from robust.attacks.registry import adapted, native

    rows = [
        info
        for info in (*native(), *adapted())
        if (norm is None or norm in info.norms) and (knowledge is None or knowledge == info.knowledge)
    ]
    from rich.console import Console
    from rich.table import Table

    table = Table("attack", "norms", "needs", "targeted", "source", box=None, pad_edge=False)
    for info in rows:
        table.add_row(
            info.name, " ".join(info.norms), info.knowledge, "yes" if info.targetable else "no", info.source
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table, markup=False)
    console.print(
        f"\n{len(rows)} attacks. Settings go in brackets: --attacks 'pgd(steps=100, restarts=5)'", highlight=False
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of audit.json."""
    from robust.summary import json_schema_text

    print(json_schema_text(), end="")


def _version(asked: bool) -> None:
    if asked:
        from robust import __version__

        print(f"robust {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _tell(summary: AuditSummary, folder: Path, as_json: bool) -> None:
    from robust.reports import summary_text

    for warning in summary.warnings:
        print(f"robust: warning: {warning}", file=sys.stderr)
    if as_json:
        print(summary.model_dump_json(indent=2))
        return
    print(summary_text(summary))
    print(f"\nreport: {folder / 'report.html'}")


def _exit_code(summary: AuditSummary, fail_under: float | None) -> int:
    """Gates fail closed: an inconclusive audit never passes, nor does a suspect figure pass a gate."""
    if summary.verdict == "inconclusive":
        return INCONCLUSIVE
    if fail_under is None:
        return 0
    reached = [result.robust_accuracy.value for result in summary.threats]
    if summary.corruptions is not None and summary.corruptions.mean_accuracy is not None:
        reached.append(summary.corruptions.mean_accuracy.value)
    held = summary.verdict == "sound" and all(value >= fail_under for value in reached)
    return 0 if held else GATE_FAILED


def _read_summary(folder: Path) -> AuditSummary:
    from pydantic import ValidationError

    from robust.summary import AuditSummary

    path = folder / "audit.json"
    if not path.is_file():
        raise InputError(f"{folder}: no finished audit here (audit.json is missing); run `robust audit --out {folder}`")
    try:
        return AuditSummary.read(path)
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a summary that this version reads ({str(error).splitlines()[0]})") from None


def _check_gate(fail_under: float | None) -> None:
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise InputError(f"--fail-under {fail_under:g}: give a share between 0 and 1, such as 0.4")


def main() -> NoReturn:
    """Run the command; bad input ends with one line and exit code 2."""
    try:
        app()
    except InputError as error:
        after_the_first()
        print(f"robust: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except RobustError as error:
        after_the_first()
        print(f"robust: {error}", file=sys.stderr)
        sys.exit(INCONCLUSIVE)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # known by its name, because torch may not have been loaded
            raise
        after_the_first()
        print(
            "robust: the device ran out of memory; give a smaller --batch-size (and another --out), or --device cpu",
            file=sys.stderr,
        )
        sys.exit(INCONCLUSIVE)
    sys.exit(0)
