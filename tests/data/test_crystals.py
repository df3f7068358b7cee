"""Flat tables of crystals: selection, joining, Parquet, what is refused."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facetry.crystal import Crystal
from facetry.data.crystals import CrystalTable, TableError


def random_crystals(rng: np.random.Generator, count: int) -> list[Crystal]:
    sizes = rng.integers(1, 7, count)
    return [
        Crystal(
            5 * np.eye(3) + rng.normal(0, 0.5, (3, 3)),
            rng.normal(0, 1, (n, 3)),
            rng.integers(1, 90, n),
            name=f"c{i}",
        )
        for i, n in enumerate(sizes)
    ]


def same(one: Crystal, two: Crystal) -> bool:
    return (
        np.array_equal(one.lattice, two.lattice)
        and np.array_equal(one.frac_coords, two.frac_coords)
        and np.array_equal(one.atomic_numbers, two.atomic_numbers)
        and one.occupancies == two.occupancies
        and one.name == two.name
    )


def test_a_table_gives_back_its_crystals(rng):
    crystals = random_crystals(rng, 20)
    table = CrystalTable.from_crystals(crystals)
    assert len(table) == 20
    assert all(same(a, b) for a, b in zip(table, crystals, strict=True))
    assert same(table[-1], crystals[-1])
    with pytest.raises(IndexError, match="crystal 20 of a table of 20"):
        table[20]


@pytest.mark.parametrize(
    "rows", [[3, 0, 0, 17], slice(2, 15, 4), np.arange(20) % 3 == 1, [], np.array([5])], ids=str
)
def test_selection_is_what_a_list_would_give(rng, rows):
    crystals = random_crystals(rng, 20)
    chosen = CrystalTable.from_crystals(crystals)[rows]
    index = np.arange(20)[rows if isinstance(rows, slice) or len(rows) else np.zeros(0, dtype=int)]
    assert [c.name for c in chosen] == [f"c{i}" for i in index]
    assert all(same(a, crystals[i]) for a, i in zip(chosen, index, strict=True))
    lattice, frac, numbers, counts = chosen.flat_arrays()
    assert len(frac) == len(numbers) == counts.sum()
    assert len(lattice) == len(counts) == len(index)


def test_occupancies_follow_selection_and_joining():
    full = Crystal(3 * np.eye(3), [[0, 0, 0]], [29], name="full")
    mixed = Crystal(3 * np.eye(3), [[0, 0, 0]], [29], occupancies=[{29: 0.7, 79: 0.3}], name="mixed")
    table = CrystalTable.concatenate(
        [CrystalTable.from_crystals([full, mixed]), CrystalTable.from_crystals([mixed, full])]
    )
    assert [c.is_ordered for c in table] == [True, False, False, True]
    assert [c.is_ordered for c in table.select([3, 2])] == [True, False]
    with pytest.raises(TableError, match="mixed: partial occupancies"):
        table.to_arrow()


def test_parquet_and_back(tmp_path, rng):
    table = CrystalTable.from_crystals(random_crystals(rng, 50))
    pq.write_table(table.to_arrow(), tmp_path / "t.parquet", row_group_size=7)
    again = CrystalTable.from_parquet(tmp_path / "t.parquet")
    assert all(same(a, b) for a, b in zip(table, again, strict=True))
    assert again.fingerprint() == table.fingerprint()


def test_large_and_fixed_lists_and_chunks_are_read(rng):
    table = CrystalTable.from_crystals(random_crystals(rng, 9)).to_arrow()
    large = table.set_column(1, "atomic_numbers", table["atomic_numbers"].cast(pa.large_list(pa.int32())))
    fixed = large.set_column(3, "lattice", large["lattice"].cast(pa.list_(pa.float64(), 9)))
    chunked = pa.concat_tables([fixed.slice(0, 4), fixed.slice(4, 5)])
    read = CrystalTable.from_arrow(chunked, "x")
    assert read.fingerprint() == CrystalTable.from_arrow(table, "x").fingerprint()


def test_formulas_are_reduced_and_order_free():
    def crystal(*numbers: int) -> Crystal:
        return Crystal(9 * np.eye(3), np.arange(3 * len(numbers)).reshape(-1, 3) / 31, list(numbers))

    table = CrystalTable.from_crystals(
        [crystal(8, 22, 38, 8, 8), crystal(38, 8, 22, 8, 8), crystal(29, 29), crystal(29)]
    )
    assert table.formulas == ["O3Sr1Ti1", "O3Sr1Ti1", "Cu1", "Cu1"]
    assert table.composition()["O"] == 6


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("lattice", [1.0] * 9, "no volume"),
        ("lattice", [1.0] * 8, "9 lattice numbers, got 1, 3 and 8"),
        ("lattice", None, "got 1, 3 and 0"),
        ("frac_coords", [0.0, float("nan"), 0.0], "not a finite number"),
        ("frac_coords", [0.0, 0.0], "got 1, 2 and 9"),
        ("atomic_numbers", [0], "outside 1 to 118"),
        ("atomic_numbers", [], "got 0, 3 and 9"),
    ],
)
def test_a_bad_row_is_named_and_the_others_kept(column, value, reason):
    rows = [
        {
            "id": f"r{i}",
            "atomic_numbers": [3],
            "frac_coords": [0.0] * 3,
            "lattice": [3.0, 0, 0, 0, 3, 0, 0, 0, 3.0],
        }
        for i in range(3)
    ]
    rows[1][column] = value
    table = pa.Table.from_pylist(rows)
    with pytest.raises(TableError, match=rf"^mine: row 2: .*{reason}"):
        CrystalTable.from_arrow(table, "mine")
    good, problems = CrystalTable.from_arrow_checked(table, "mine")
    assert good.names.tolist() == ["r0", "r2"]
    assert list(problems) == [1]
    np.testing.assert_array_equal(good.lattice[1], 3 * np.eye(3))


def test_wrong_columns_are_named():
    with pytest.raises(TableError, match="atomic_numbers, frac_coords, lattice missing, have id"):
        CrystalTable.from_arrow(pa.table({"id": ["a"]}), "mine")
    table = pa.table({"id": ["a"], "atomic_numbers": ["x"], "frac_coords": [[0.0]], "lattice": [[0.0]]})
    with pytest.raises(TableError, match="atomic_numbers should hold lists of numbers, it is string"):
        CrystalTable.from_arrow(table, "mine")


def test_reading_is_quick(data_folder):
    start = time.perf_counter()
    table = CrystalTable.from_parquet(data_folder / "mp20" / "val.parquet")
    assert len(table) == 9047
    assert time.perf_counter() - start < 1.0
