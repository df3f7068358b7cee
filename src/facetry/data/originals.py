"""From published files to ours: CSV and Feather files with a `cif` column, as CDVAE and DiffCSP have them.

The numbers printed in the CIF text are kept: not wrapped into the cell, nothing snapped to thirds.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from facetry.data.crystals import CrystalTable, TableError
from facetry.data.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["content_problem", "convert", "lattice_from_parameters", "mlearn_stress", "read_cif_table"]

ID_COLUMNS = ("material_id", "id", "mbid", "mp_id")
RENAMED = {"spacegroup.number": "spacegroup_number"}
KILOBAR = 0.1 / 160.21766208  # eV/Å^3 (CODATA 2014, as ASE uses)


def lattice_from_parameters(
    lengths: Float[np.ndarray, "crystals 3"], angles: Float[np.ndarray, "crystals 3"]
) -> Float[np.ndarray, "crystals 3 3"]:
    """Rows a, b, c in Å from lengths in Å and angles in degrees: c along z, a in the xz plane."""
    cos, sin = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    a, b, c = lengths.T
    star = np.clip((cos[:, 0] * cos[:, 1] - cos[:, 2]) / (sin[:, 0] * sin[:, 1]), -1, 1)
    zero = np.zeros_like(a)
    rows = [
        [a * sin[:, 1], zero, a * cos[:, 1]],
        [-b * sin[:, 0] * star, b * sin[:, 0] * np.sqrt(1 - star**2), b * cos[:, 0]],
        [zero, zero, c],
    ]
    return np.stack([np.stack(r, axis=-1) for r in rows], axis=1)


def _cif_arrays(text: str, source: str) -> tuple[list[float], list[str], list[list[float]]]:
    """Cell parameters, element symbols and fractional coordinates of a P1 CIF, as printed."""
    import gemmi

    block = gemmi.cif.read_string(text).sole_block()
    cell = [
        gemmi.cif.as_number(block.find_value(f"_cell_{name}") or "?")
        for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    ]
    operators = list(block.find_values("_symmetry_equiv_pos_as_xyz")) or list(
        block.find_values("_space_group_symop_operation_xyz")
    )
    if len(operators) > 1:
        raise TableError(f"{source}: expected a CIF in P1, it lists {len(operators)} symmetry operators")
    symbols = [gemmi.cif.as_string(v) for v in block.find_values("_atom_site_type_symbol")]
    coords = [[gemmi.cif.as_number(v) for v in block.find_values(f"_atom_site_fract_{x}")] for x in "xyz"]
    shares = [gemmi.cif.as_number(v) for v in block.find_values("_atom_site_occupancy")]
    if not symbols or any(len(c) != len(symbols) for c in coords):
        raise TableError(f"{source}: the CIF has no complete list of sites")
    if not all(map(math.isfinite, [*cell, *(x for c in coords for x in c)])):
        raise TableError(f"{source}: a cell parameter or coordinate is not a number")
    if any(s != 1.0 for s in shares):
        raise TableError(f"{source}: expected full occupancies")
    return cell, symbols, [list(xyz) for xyz in zip(*coords, strict=True)]


def read_cif_table(path: Path) -> tuple[CrystalTable, dict[str, np.ndarray]]:
    """Crystals and the other columns of a CSV (.csv, .csv.gz) or Feather file with a `cif` column.

    Columns of numbers come as float64, others as text. Raises TableError naming the row.
    """
    from facetry.elements import atomic_number

    header, rows = _raw_table(path)
    if "cif" not in header:
        raise TableError(f"{path}: expected a column named cif, found {', '.join(header)}")
    ids = next((c for c in ID_COLUMNS if c in header), None)
    if ids is None:
        raise TableError(f"{path}: expected a column of identifiers ({', '.join(ID_COLUMNS)})")
    cells, numbers, coords, sizes = [], [], [], []
    for i, text in enumerate(rows["cif"]):
        cell, symbols, xyz = _cif_arrays(text, f"{path}: row {i + 1} ({rows[ids][i]})")
        cells.append(cell)
        numbers += map(atomic_number, symbols)
        coords += xyz
        sizes.append(len(symbols))
    parameters = np.array(cells).reshape(-1, 6)
    names = np.empty(len(sizes), dtype=object)
    names[:] = [str(v) for v in rows[ids]]
    table = CrystalTable(
        lattice_from_parameters(parameters[:, :3], parameters[:, 3:]),
        np.array(coords, dtype=np.float64).reshape(-1, 3) + 0.0,
        np.array(numbers, dtype=np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        names,
    )
    return table, {RENAMED.get(c, c): _numbers(rows[c]) for c in header if c not in ("cif", ids)}


def _raw_table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    if path.suffix == ".feather":
        import pyarrow.feather as feather

        table = feather.read_table(path)
        return table.column_names, {
            c: ["" if v is None else str(v) for v in table[c].to_pylist()] for c in table.column_names
        }
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    csv.field_size_limit(min(sys.maxsize, 1 << 30))
    reader = csv.reader(io.StringIO(data.decode("utf-8"), newline=""))
    header = next(reader, [])
    rows = [r for r in reader if r]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise TableError(f"{path}: row {i + 1} has {len(row)} cells, the header {len(header)}")
    return header, {c: [r[k] for r in rows] for k, c in enumerate(header)}


def _numbers(values: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(v) if v != "" else np.nan for v in values])
    except ValueError:
        return np.array(values, dtype=object)


def values_hash(values: Float[np.ndarray, " rows"]) -> str:
    """sha256 of a column on a grid of 1e-8: CSV readers differ in the last bit of a printed number."""
    missing = np.isnan(values)
    cells = np.where(
        missing, np.iinfo(np.int64).min, np.floor(np.where(missing, 0, values) * 1e8 + 0.318309886)
    )
    return hashlib.sha256(cells.astype("<i8").tobytes()).hexdigest()


def convert(manifest: Manifest, path: Path, only: str | None = None) -> Path:
    """Turn an original into our Parquet in the cache, as the file whose crystals it holds.

    Raises TableError saying what differs from every file of the set that it could be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from facetry.data.vault import atomic_write, cache_folder

    crystals, columns = read_cif_table(path)
    arrow = crystals.to_arrow()
    for name in manifest.targets:
        if name in columns:
            arrow = arrow.append_column(name, pa.array(columns[name], pa.float64(), from_pandas=True))
    reasons = []
    for key, entry in manifest.files.items():
        if only not in (None, key) or not entry.originals:
            continue
        problem = table_problem(manifest, key, arrow)
        if problem is None:
            target = cache_folder() / "data" / entry.path
            with atomic_write(target) as stream:
                pq.write_table(arrow, stream, compression="zstd")
            return target
        reasons.append(f"not {entry.path}: {problem}")
    if not reasons:
        reasons.append("no file of this set is made from a table with a cif column")
    raise TableError(f"{path} is no original of {manifest.name} known here; " + "; ".join(reasons))


def content_problem(manifest: Manifest, key: str, path: Path) -> str | None:
    """Why a Parquet file with another sha256 is not the file of the manifest; None if it has its content."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    entry = manifest.files[key]
    if entry.sha256 and not entry.fingerprint:
        return "its hash differs"
    try:
        return table_problem(manifest, key, pq.read_table(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"unreadable: {error}"


def table_problem(manifest: Manifest, key: str, arrow: pa.Table) -> str | None:
    """What differs between the crystals and values of an Arrow table and those of the manifest's file."""
    entry = manifest.files[key]
    crystals = CrystalTable.from_arrow(arrow, key)
    if len(crystals) != entry.rows:
        return f"expected {entry.rows} crystals, got {len(crystals)}"
    if len(set(crystals.names.tolist())) != len(crystals):
        return "identifiers repeat"
    if entry.fingerprint and crystals.fingerprint() != entry.fingerprint:
        return "other crystals, order or coordinates"
    for name, expected in entry.values.items():
        if name not in arrow.column_names:
            return f"no column {name}"
        if values_hash(arrow[name].to_numpy().astype(np.float64)) != expected:
            return f"other values of {name}"
    if not entry.fingerprint:
        return _unknown_problem(manifest, key, crystals, arrow)
    return None


def _unknown_problem(manifest: Manifest, key: str, crystals: CrystalTable, arrow: pa.Table) -> str | None:
    """For an official file whose hash nobody told us: it must hold the part that we have, crystal by crystal,
    and nothing of the other parts."""
    import pyarrow.parquet as pq

    from facetry.data.vault import find

    entry = manifest.files[key]
    where = {name: i for i, name in enumerate(crystals.names.tolist())}
    if entry.contains:
        part = CrystalTable.from_parquet(find(manifest, entry.contains))
        missing = [n for n in part.names.tolist() if n not in where]
        if missing:
            return (
                f"{len(missing)} of the {len(part)} crystals of {entry.contains} are not in it ({missing[0]})"
            )
        if _differ(crystals.select([where[n] for n in part.names.tolist()]), part):
            return f"crystals shared with {entry.contains} differ"
    for other in manifest.files:
        if other in (key, entry.contains):
            continue
        names = pq.read_table(find(manifest, other), columns=["id"])["id"].to_pylist()
        common = [n for n in names if n in where]
        if common:
            return f"{len(common)} of its crystals belong to {other} ({common[0]})"
    if manifest.default_target not in arrow.column_names:
        return f"no column {manifest.default_target}"
    return None


def _differ(one: CrystalTable, two: CrystalTable) -> bool:
    """Whether crystals in the same order differ by more than 1e-4: a carrier may have snapped coordinates to
    thirds, or wrapped them into the cell."""
    if not (
        np.array_equal(one.atomic_numbers, two.atomic_numbers) and np.array_equal(one.offsets, two.offsets)
    ):
        return True
    shift = one.frac_coords - two.frac_coords
    return bool(np.abs(shift - np.rint(shift)).max() > 1e-4 or np.abs(one.lattice - two.lattice).max() > 1e-4)


def mlearn_stress(values: Float[np.ndarray, "rows 6"], orders: Sequence[str]) -> Float[np.ndarray, "rows 6"]:
    """Stress of mlearn_ff as ASE writes it: xx, yy, zz, yz, xz, xy, eV/Å^3, positive under tension.

    The source is in kbar, positive under compression, with the shear terms in an order that depends on the
    element; where that order is not known (lithium) they are NaN.
    """
    wanted = ("xx", "yy", "zz", "yz", "xz", "xy")
    out = np.full(values.shape, np.nan)
    for order in set(orders):
        rows = np.array([o == order for o in orders])
        names = order.split(",") if order != "unverified" else ["xx", "yy", "zz"]
        for column, name in enumerate(wanted):
            if name in names:
                out[rows, column] = -KILOBAR * values[rows, names.index(name)]
    return out
