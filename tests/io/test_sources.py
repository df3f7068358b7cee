"""What can be named: files, folders, patterns, archives, tables, objects, lists of them."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest

import facetry
from facetry.crystal import Crystal
from facetry.io import ReadError, read, read_many, write

SALT = Crystal(np.diag([4.0, 4.0, 4.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])


@pytest.fixture
def folder(tmp_path):
    for name in ("b.cif", "a.vasp", "deep/er/c.extxyz", "deep/d.json"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        SALT.write(path)
    for name in ("README.md", "targets.csv", ".hidden.cif", "deep/picture.png"):
        (tmp_path / "set" / name).write_text("file,target\n")
    return tmp_path / "set"


def names(places, **options) -> list[str]:
    return [reading.name for reading in read_many(places, **options)]


def reasons(places) -> list[str]:
    return [str(result) for result in read(places, errors="return") if isinstance(result, ReadError)]


def test_folder_is_walked_in_order_and_only_structures_are_taken(folder):
    assert names(folder) == ["a", "b", "d", "c"]
    assert read(folder) == read([folder / "a.vasp", str(folder / "b.cif"), folder / "deep"])


def test_patterns(folder):
    assert names(f"{folder}/*.cif") == ["b"]
    assert names(f"{folder}/**/*.json") == ["d"]
    assert "no file matches" in reasons(f"{folder}/*.mcif")[0]


def test_file_with_pattern_letters_in_its_name(folder):
    SALT.write(folder / "x[1].cif")
    assert names(folder / "x[1].cif") == ["x[1]"]


def test_same_names_at_the_top_of_the_package(folder):
    assert facetry.read(folder / "b.cif") == [SALT]
    assert facetry.ReadError is ReadError


def test_errors_are_raised_skipped_or_returned(folder):
    (folder / "bad.cif").write_text("data_x\n")
    with pytest.raises(ReadError, match=r"bad\.cif: no structure in it") as caught:
        read(folder)
    assert caught.value.file.endswith("bad.cif")
    assert len(read(folder, errors="skip")) == 4
    assert len(read(folder, errors="return")) == 5


def test_missing_and_unknown(tmp_path):
    assert "no such file or folder" in reasons(tmp_path / "nothing.cif")[0]
    assert "no structure file in this folder" in reasons(tmp_path)[0]
    (tmp_path / "notes.pdf").write_text("x")
    assert "no known format; expected .cif" in reasons(tmp_path / "notes.pdf")[0]


def test_objects():
    atoms, structure = SALT.to_ase(), SALT.to_pymatgen()
    assert read(SALT) == [SALT]
    assert [crystal.formula for crystal in read([atoms, structure, SALT])] == ["CsCl"] * 3
    assert read(structure)[0] == SALT
    assert len(read(atoms)) == 1
    assert "expected a facetry Crystal" in reasons([3])[0]


def test_generator_of_paths(folder):
    assert names(path for path in sorted(folder.glob("b*.cif"))) == ["b"]


# --- archives ----------------------------------------------------------------------------------


def texts() -> dict[str, bytes]:
    cif = SALT.to_text("cif").encode()
    return {
        "x/one.cif": cif,
        "../../escape.cif": cif,
        "/abs/two.cif": cif,
        "x/README": b"",
        "x/in.zip": b"PK",
    }


def make_archive(path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in texts().items():
                archive.writestr(name, data)
        return
    with tarfile.open(path, "w:gz") as archive:
        for name, data in texts().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.cif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tgz"])
def test_archives_are_read_without_unpacking(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    make_archive(path)
    results = list(read_many(path))
    assert [r.name for r in results] == ["one", "escape", "two", "in.zip"]
    assert results[0].source == f"{path}:x/one.cif"
    assert [r.result for r in results[:3]] == [SALT] * 3
    assert "archive inside an archive" in str(results[3].result)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert len(read(tmp_path, errors="skip")) == 3  # found in its folder, too


def test_bad_archives(tmp_path):
    for suffix in (".zip", ".tar.gz"):
        path = tmp_path / f"cut{suffix}"
        make_archive(path)
        path.write_bytes(path.read_bytes()[:60])
        assert "damaged archive" in reasons(path)[0]
        path.write_bytes(b"not at all")
        assert "damaged archive" in reasons(path)[0]
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("README", "x")
    assert "no structure file in this archive" in reasons(tmp_path / "none.zip")[0]


def test_archive_member_that_grows_without_end(tmp_path, monkeypatch):
    from facetry.io import sources

    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.cif", b" " * 10_000)
    assert "more than the 1000" in reasons(tmp_path / "bomb.zip")[0]


# --- tables ------------------------------------------------------------------------------------


def test_csv_of_files(folder):
    table = folder / "set.csv"
    table.write_text(
        "id,file,gap\nfirst,b.cif,1.0\n,deep/d.json,\nthird,lost.cif,2\nfourth,,3\nfifth,README.md,1\n"
    )
    results = list(read_many(table))
    assert [r.name for r in results] == ["first", "d", "third", "fourth", "fifth"]
    assert [r.result for r in results[:2]] == [SALT, SALT]
    assert str(results[2].result) == f"{table}:row 4: no such file: lost.cif (looked for beside the table)"
    assert "the column 'file' is empty" in str(results[3].result)
    assert "no known format" in str(results[4].result)


def test_csv_of_texts(tmp_path):
    text = SALT.to_text("cif").replace('"', '""')
    table = tmp_path / "set.csv"
    table.write_text(f'material_id,CIF\nmp-1,"{text}"\nmp-2,rubbish\n')
    results = list(read_many(table))
    assert [r.name for r in results] == ["mp-1", "mp-2"]
    assert results[0].result == SALT
    assert results[0].result.name == "mp-1"
    assert "row 3: no valid CIF" in str(results[1].result)


def test_csv_without_header_or_rows(tmp_path):
    table = tmp_path / "set.csv"
    table.write_text("b.cif,1.0\nc.cif,2.0\n")
    assert "no column 'cif' or 'file' in its header (b.cif, 1.0); add a header" in reasons(table)[0]
    table.write_text("file,gap\n")
    assert "no rows" in reasons(table)[0]
    table.write_text("")
    assert "header (nothing)" in reasons(table)[0]


def parquet(path, rows, **changes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.array([row[0] for row in rows], pa.string()),
        "atomic_numbers": pa.array([row[1] for row in rows], pa.list_(pa.int16())),
        "frac_coords": pa.array([row[2] for row in rows], pa.list_(pa.float64())),
        "lattice": pa.array([row[3] for row in rows], pa.list_(pa.float64())),
    }
    for name in changes.get("without", ()):
        del columns[name]
    pq.write_table(pa.table(columns), path, row_group_size=changes.get("row_group_size", 100))


CUBE = [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.0]


def test_parquet(tmp_path):
    rows = [(f"m{i}", [55, 17], [0, 0, 0, 0.5, 0.5, 0.5], CUBE) for i in range(250)]
    parquet(tmp_path / "set.parquet", rows)
    results = list(read_many(tmp_path))
    assert [r.name for r in results] == [f"m{i}" for i in range(250)]
    assert all(r.result == SALT for r in results)


def test_bad_parquet_rows_do_not_stop_the_good_ones(tmp_path):
    good = ("good", [55, 17], [0, 0, 0, 0.5, 0.5, 0.5], CUBE)
    bad = {
        "not finite": ("nan", [55, 17], [0, 0, 0, 0.5, 0.5, float("nan")], CUBE),
        "2 atoms need 6 coordinates": ("short", [55, 17], [0, 0, 0], CUBE),
        "flat": ("flat", [55], [0, 0, 0], [4.0, 0, 0, 8.0, 0, 0, 0, 0, 4.0]),
        "atomic number 119": ("element", [119], [0, 0, 0], CUBE),
        "empty in this row": ("null", None, [0, 0, 0], CUBE),
        "9 lattice numbers": ("lattice", [55], [0, 0, 0], CUBE[:6]),
        "lie on one position": ("twice", [55, 17], [0, 0, 0, 1, 0, 0], CUBE),
        "1 atoms need|0 atoms": ("none", [], [], CUBE),
    }
    parquet(tmp_path / "set.parquet", [good, *bad.values(), good])
    results = [r.result for r in read_many(tmp_path / "set.parquet")]
    assert results[0] == results[-1] == SALT
    for (words, row), result in zip(bad.items(), results[1:-1], strict=True):
        assert isinstance(result, ReadError)
        assert any(word in result.reason for word in words.split("|"))
        assert f"({row[0]})" in result.file


def test_bad_parquet_files(tmp_path):
    parquet(tmp_path / "a.parquet", [], without=("lattice",))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    parquet(tmp_path / "c.parquet", [])
    first, second, third = reasons(tmp_path)
    assert "no column lattice" in first
    assert "cannot be read as Parquet" in second
    assert "no rows" in third


def test_parquet_without_id(tmp_path):
    parquet(tmp_path / "set.parquet", [(None, [55], [0, 0, 0], CUBE)] * 2, without=("id",))
    assert names(tmp_path / "set.parquet") == ["set#0", "set#1"]


def test_merging_reaches_every_kind(tmp_path):
    close = SALT.replace(atomic_numbers=[55, 55], frac_coords=[[0, 0, 0], [0, 0, 0.004]])
    write(close, tmp_path / "a.cif")
    parquet(tmp_path / "b.parquet", [("x", [55, 55], [0, 0, 0, 0, 0, 0.004], CUBE)])
    assert len(reasons(tmp_path)) == 2
    assert [len(crystal) for crystal in read(tmp_path, merge_within=0.05)] == [1, 1]
