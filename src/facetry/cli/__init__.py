"""The `facetry` command: the verbs of the package in a shell.

Exit codes: 0 all is well, 1 a fault that is not the caller's, 2 a mistake in the call, 3 some inputs gave no
value, 4 a model does not keep a symmetry that it declares. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from facetry._version import __version__
from facetry.cli import (
    audit,
    certify,
    check,
    data,
    evaluate,
    explain,
    generate,
    match,
    predict,
    relax,
    reproduce,
    train,
)
from facetry.cli.common import INTERRUPTED, OK, report_error

app = typer.Typer(
    name="facetry",
    help="Learn from crystals: structures in, properties with unit and interval out.",
    epilog="Exit codes: 0 fine, 1 fault of ours, 2 mistake in the call, 3 some inputs failed, "
    "4 a declared symmetry fails. "
    "--debug anywhere shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", short_help="Train, evaluate, predict, report on shipped data.")(check.demo)
app.command("train", short_help="Train a model from a recipe or options.")(train.train)
app.command("evaluate", short_help="Scores of a model on labelled crystals.")(evaluate.evaluate)
app.command("predict", short_help="Values with intervals for structures.")(predict.predict)
app.command("relax", short_help="Cells and atoms to rest, by a relaxing model.")(relax.relax)
app.command("embed", short_help="One vector per structure or atom.")(predict.embed)
app.command("explain", short_help="What a model looked at: attention, frames.")(explain.explain)
app.command("generate", short_help="Structures for a formula, lowest energy first.")(generate.generate)
app.command("match", short_help="Which references candidates match, and how well.")(match.match)
app.command("certify", short_help="A model's symmetry: declared against measured.")(certify.certify)
app.command("audit", short_help="What is wrong with a set; what a model must beat.")(audit.audit)
app.add_typer(data.app, name="dataset", short_help="Named sets: list, info, get, import, clean.")
app.command("reproduce", short_help="A published row: their number, ours, a receipt.")(reproduce.reproduce)
app.command("doctor", short_help="Versions, devices, a self-test in seconds.")(check.doctor)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"facetry {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """The command line without the program's name -> exit code. Errors become one line on stderr."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(args=arguments, prog_name="facetry", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, debug)
    if code == INTERRUPTED:  # typer turns an interruption into this code
        return report_error(KeyboardInterrupt(), debug)
    return code if isinstance(code, int) else OK


def main() -> None:
    """Entry point of the `facetry` script."""
    sys.exit(run(sys.argv[1:]))
