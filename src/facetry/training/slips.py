"""What is wrong with a recipe, in one line: the key, what was expected, what came, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

_KINDS = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "bool_parsing": "true or false",
    "bool_type": "true or false", "string_type": "a word in quotes",
}  # fmt: skip
_OTHER_NAMES = {
    "lr": "learning_rate", "max_lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size",
    "num_epochs": "epochs", "max_epochs": "epochs", "max_steps": "steps", "scheduler": "schedule",
    "clip": "gradient_clip", "grad_clip": "gradient_clip", "device": "accelerator", "gpus": "devices",
    "criterion": "loss", "ema": "averaging", "early_stopping": "patience", "random_seed": "seed",
    "property": "target", "dataset": "name", "path": "name",
}  # fmt: skip
"""What others call our keys."""
_EXAMPLES = {
    "model": 'a table [model] with a name, such as name = "icomformer"',
    "data": 'a table [data] with a name, such as name = "perov5"',
    "data.name": "it: a named set (`facetry dataset list`), or the path of your own",
}


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for an unknown key, else the keys there are."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def first_error(
    error: ValidationError, schema: type[BaseModel], tables: Mapping[str, type[BaseModel]], where: str = ""
) -> str:
    """The first complaint of pydantic as one line: the key, what was expected, what came, the nearest key.

    `schema` is what was checked, `tables` the schema of every table in it; with `where` it is that table."""
    detail = error.errors()[0]
    path = [str(part) for part in detail["loc"]]
    if where in tables:
        path = [where, *path]
    key = ".".join(path)
    table = tables.get(path[0]) if path else None
    if detail["type"] == "extra_forbidden":
        known = list((table if len(path) > 1 and table else schema).model_fields)
        other = _OTHER_NAMES.get(path[-1].lower())
        hint = f"did you mean {other!r}?" if other in known else nearest(path[-1], known)
        return f"unknown key {key!r}; {hint}"
    if detail["type"] == "missing":
        return f"{key} is missing; add {_EXAMPLES.get(key, 'it')}"
    field = table.model_fields.get(path[1]) if table is not None and len(path) > 1 else None
    if field is not None and len(path) > 2 and path[2] not in ("train", "val", "test"):
        key, expected = ".".join(path[:2]), f"expected {field.description}"  # one of several kinds of value
    else:
        expected = _expected(detail, path[0] if path else "")
    value = "" if isinstance(detail["input"], BaseModel) or not key else f", got {detail['input']!r}"
    if detail["type"] == "value_error":
        value = ""
    hint = ""
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        near = nearest(detail["input"], re.findall(r"'([^']+)'", detail["ctx"]["expected"]))
        hint = f"; {near}" if near.startswith("did") else ""
    return f"{key}: {expected}{value}{hint}" if key else expected


def _expected(detail: Mapping[str, Any], table: str) -> str:
    """What pydantic would have taken, in plain words."""
    kind, limits = detail["type"], detail.get("ctx", {})
    if kind in _KINDS:
        return f"expected {_KINDS[kind]}"
    for name, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if name in limits:
            return f"expected {word} {limits[name]:g}"
    if kind == "literal_error":
        return f"expected {limits['expected']}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"expected a table, [{table}] with its keys below it"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"
