"""`facetry reproduce`: published rows, what we have of them, and how to get there."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from facetry.cli.common import OK, Json, Mistake, Progress, Stopped


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME|list", help="A published row; list shows all.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run [runs/NAME].")] = None,
    short: Annotated[bool, typer.Option("--short", help="The shorter recipe; the receipt says so.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
    ] = None,
    crystals: Annotated[
        int | None,
        typer.Option(min=1, help="Structures from formulas: so many test crystals, drawn at random [all]."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="Structures from formulas: of each [20].")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the row, its cost and what would change; train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per epoch.")] = False,
    as_json: Json = False,
) -> int:
    """Train for a published row and compare: the published number, ours, a receipt with both.

    `list` shows every row that the data at hand allows, with our number where there is a receipt. A run
    that was killed goes on when the command is given again; what has ended is not done again.

    \b
    facetry reproduce list
    facetry reproduce ecn-perov5-cgcnn --plan
    facetry reproduce ecn-perov5-cgcnn --short
    facetry reproduce empnn-denoise-perov5-k1 --set training.steps=4096 -o runs/k1
    facetry reproduce continuousp-perov5-continuousp --short --crystals 20 -n 5
    """
    asked: dict[str, Any] = {
        "short": short,
        "overrides": override or (),
        "crystals": crystals,
        "count": count,
    }
    if name == "list":
        if out is not None or plan or any(asked.values()):
            raise Mistake("reproduce list takes no other option than --json; name a row to train for it")
        return _list(as_json)
    from facetry.tasks.reproduce import planned
    from facetry.tasks.reproduce import reproduce as train_for

    if plan:
        wanted = planned(name, out, **asked)
        print(json.dumps(_as_json(wanted.row) | {"plan": str(wanted)}) if as_json else wanted)
        return OK
    lines = _Lines()
    try:
        found = train_for(name, out, **asked, verbose=False if quiet else None, progress=lines.show)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on") from None
    except ImportError as error:  # pymatgen; the text says what to type
        raise Mistake(str(error)) from error
    finally:
        lines.close()
    receipt = found.folder / "receipt.json"
    if as_json:
        print(receipt.read_text(encoding="utf-8"))
    else:
        print(found)
        print(f"receipt  {receipt}")
    return OK


class _Lines:
    """A line of progress for each thing that is counted."""

    def __init__(self) -> None:
        self.line: Progress | None = None
        self.what = ""

    def show(self, what: str, done: int, total: int) -> None:
        if self.line is None or what != self.what:
            self.close()
            self.line, self.what = Progress(what), what
        self.line.total = total
        self.line.step(done - self.line.done)

    def close(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None


def _as_json(row: Any) -> dict[str, Any]:
    from facetry.tasks.published import ours

    content = vars(row) | {
        "overrides": list(row.overrides),
        "search": None if row.search is None else row.search.model_dump(),
        "ours": ours().get(row.name, []),
    }
    return {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}


def _list(as_json: bool) -> int:
    """The rows under their tables: what a table measures, on what data, at what cost; then its rows."""
    from facetry.tasks.published import load_rows, not_at_hand, ours

    rows = load_rows().values()
    if as_json:
        print(json.dumps([_as_json(row) for row in rows]))
        return OK
    known = ours()
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)
    blocks = []
    for (what, table, paper), group in groupby(rows, key=lambda row: (row.what, row.table, row.paper)):
        inside = list(group)
        first = inside[0]
        data = first.data if first.comparable else f"not comparable: {first.data}"
        told = [what, f"{table} of {paper}", f"data: {data}", *_costs(inside)]
        lines = [textwrap.fill(told[0], width), *(_indented(text, width) for text in told[1:])]
        cells = [("name", "published", "ours", "took")]
        for row in inside:
            mine = known.get(row.name, [])
            shown = ", ".join(f"{mine[0]['metrics'][m][0]:.4g}" for m in row.published) if mine else ""
            shown += " short" if mine and mine[0]["shortened"] else ""
            cells.append((row.name, row.numbers(), shown, f"{mine[0]['minutes']} min" if mine else ""))
        blocks.append("\n".join([*lines, *_aligned(cells)]))
    print("\n\n".join(blocks))
    for paper, reasons in not_at_hand().items():
        print(textwrap.fill(f"\nNot listed of {paper}: {'; '.join(reasons)}.", width))
    print("\nfacetry reproduce NAME --plan shows what a row takes; short: from a shortened run.")
    return OK


def _costs(rows: list[Any]) -> list[str]:
    """What the rows of a table cost; where they differ, which cost what."""
    by_cost: dict[str, list[str]] = {}
    for row in rows:
        by_cost.setdefault(row.budget, []).append(row.name)
    if len(by_cost) == 1:
        return [f"cost: {rows[0].budget}"]
    return [f"cost of {', '.join(names)}: {budget}" for budget, names in by_cost.items()]


def _indented(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ")


def _aligned(cells: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["    " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
