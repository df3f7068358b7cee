"""Small CIFs, written for a test and read."""

from __future__ import annotations

import pytest

from facetry.crystal import Crystal
from facetry.io import ReadError, from_text

CUBIC = (4.0, 4.0, 4.0, 90, 90, 90)
HEXAGONAL = (3.0, 3.0, 5.0, 90, 90, 120)


def cif(
    cell, symmetry: str, sites: str, columns: str = "label fract_x fract_y fract_z", extra: str = ""
) -> str:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_test", extra]
    lines += [f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True) if value is not None]
    lines += [symmetry, "loop_", *(f"_atom_site_{column}" for column in columns.split()), sites]
    return "\n".join(lines) + "\n"


def named(symbol: str) -> str:
    return f"_symmetry_space_group_name_H-M '{symbol}'"


def listed(*operators: str) -> str:
    return "\n".join(["loop_", "_space_group_symop_operation_xyz", *(f"'{text}'" for text in operators)])


def one(text: str, **options) -> Crystal:
    return from_text(text, "cif", "test.cif", **options)


def refused(text: str, words: str) -> str:
    with pytest.raises(ReadError, match=words) as caught:
        one(text)
    assert str(caught.value).startswith("test.cif: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)
