"""Formulas: every way to write one, what is refused and in what words, tables."""

from __future__ import annotations

import pytest

from facetry.chemistry import Formula, FormulaError, parse, read_formulas

SRTIO3 = {38: 1, 22: 1, 8: 3}


@pytest.mark.parametrize(
    ("text", "counts", "reduced", "anonymous"),
    [
        ("SrTiO3", SRTIO3, "SrTiO3", "ABC3"),
        ("Sr1Ti1O3", SRTIO3, "SrTiO3", "ABC3"),
        (" Sr Ti O3 ", SRTIO3, "SrTiO3", "ABC3"),
        ("O3TiSr", SRTIO3, "SrTiO3", "ABC3"),
        ("Ti2O4", {22: 2, 8: 4}, "TiO2", "AB2"),
        ("Ca(OH)2", {20: 1, 8: 2, 1: 2}, "CaH2O2", "AB2C2"),
        ("Mg[Al2O4]2", {12: 1, 13: 4, 8: 8}, "Mg(AlO2)4", "AB4C8"),
        ("Fe4[Fe(CN)6]3", {26: 7, 6: 18, 7: 18}, "Fe7C18N18", "A7B18C18"),
        ("CuSO4·5H2O", {29: 1, 16: 1, 8: 9, 1: 10}, "CuH10SO9", "ABC9D10"),
        ("Li0.5CoO2", {3: 1, 27: 2, 8: 4}, "LiCo2O4", "AB2C4"),
        ("D2O", {1: 2, 8: 1}, "H2O", "AB2"),
        ("CO", {6: 1, 8: 1}, "CO", "AB"),
        ("Co", {27: 1}, "Co", "A"),
        ("Si8", {14: 8}, "Si", "A"),
        ("NO2", {7: 1, 8: 2}, "NO2", "AB2"),
    ],
)
def test_reads(text, counts, reduced, anonymous):
    formula = parse(text)
    assert formula.counts == counts
    assert formula.anonymous == anonymous
    assert parse(reduced).reduced_counts == formula.reduced_counts
    assert formula.atoms == sum(counts.values())
    assert parse(str(formula)) == formula
    assert hash(parse(str(formula))) == hash(formula)


def test_the_reduced_formula_is_that_of_the_crystal():
    from facetry import Crystal

    crystal = Crystal(
        [[4, 0, 0], [0, 4, 0], [0, 0, 8]], [[0, 0, i / 10] for i in range(10)], [8] * 6 + [22] * 2 + [38] * 2
    )
    formula = Formula.of(crystal.atomic_numbers)
    assert formula.reduced == crystal.formula == "SrTiO3"
    assert formula.units == 2
    assert str(formula) == "Sr2Ti2O6"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("SrTiX3", "at character 5, 'X' is no element; near: Xe"),
        ("srtio3", "at character 1, expected an element symbol"),
        ("SrTi(O3", "at character 5, '(' is never closed"),
        ("SrTiO3)", "at character 7, ')' closes no bracket"),
        ("Sr(TiO3]", "closes no bracket"),
        ("Oxide", "'Oxide' is no element; near: O"),
        ("Zq2", "'Zq' is no element; near: Z"),
        ("SrTiO3!", "at character 7"),
        ("3", "expected an element symbol"),
        ("SrTiO0", "above 0"),
        ("Li0.123CoO2", "not whole"),
        ("H9999999", "at most 100000"),
    ],
)
def test_refuses(text, words):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_cells_of_another_size():
    formula = parse("SrTiO3")
    assert formula.numbers() == [38, 22, 8, 8, 8]
    assert formula.numbers(10) == [38, 38, 22, 22] + [8] * 6
    with pytest.raises(FormulaError, match=r"SrTiO3 has 5 atoms.*5 and 10 are"):
        formula.numbers(7)
    assert parse("Ti2O4").atoms == 6
    assert parse("Ti2O4").numbers(3) == [22, 8, 8]


def test_lists_and_tables(tmp_path):
    table = tmp_path / "wanted.csv"
    table.write_text("id,Formula\n1,SrTiO3\n2,Ti2O4\n")
    assert [str(f) for f in read_formulas(table)] == ["SrTiO3", "Ti2O4"]
    assert [str(f) for f in read_formulas(str(table), column="formula")] == ["SrTiO3", "Ti2O4"]
    lines = tmp_path / "wanted.txt"
    lines.write_text("# oxides\nMgO\n\nCaO\n")
    assert [str(f) for f in read_formulas([lines, "NaCl, KCl", parse("LiF")])] == [
        "MgO", "CaO", "NaCl", "KCl", "LiF",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        (
            "id,formula\n1,SrTiO3\n2,SrTiQ3\n",
            None,
            "wanted.csv, row 3: 'SrTiQ3' is no formula: at character 5",
        ),
        ("id,formla\n1,SrTiO3\n", None, "no column 'formula' (did you mean formla?)"),
        ("id,formula\n", None, "no formulas in it"),
        ("id,formula\n1,SrTiO3\n", "compound", "no column 'compound'"),
    ],
)
def test_tables_with_mistakes(tmp_path, text, column, words):
    (tmp_path / "wanted.csv").write_text(text)
    with pytest.raises(FormulaError) as caught:
        read_formulas(tmp_path / "wanted.csv", column)
    assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_formulas("none.csv")
    with pytest.raises(FormulaError, match="empty list"):
        read_formulas([])
