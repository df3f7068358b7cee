"""Where files are looked for, what is refused, what a full disk leaves behind."""

from __future__ import annotations

import csv
import errno
import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facetry.crystal import Crystal
from facetry.data import vault
from facetry.data.crystals import CrystalTable, TableError
from facetry.data.manifest import File, Manifest, Original, Split, TargetInfo
from facetry.data.named import named_splits
from facetry.data.originals import lattice_from_parameters, read_cif_table, values_hash
from facetry.data.vault import DataCorrupt, DataNotFound, VaultError


def crystals(first: int, count: int) -> CrystalTable:
    """Skewed cells with coordinates of eight digits, as CIF files print them."""
    rng = np.random.default_rng(first)
    made = []
    for i in range(count):
        lengths, angles = rng.uniform(3, 9, (1, 3)).round(8), rng.uniform(70, 110, (1, 3)).round(8)
        lattice = lattice_from_parameters(lengths, angles)[0]
        made.append(
            Crystal(lattice, rng.uniform(-1, 1, (3, 3)).round(8), [8, 22, 38], name=f"id-{first + i}")
        )
    return CrystalTable.from_crystals(made)


def write_csv(path: Path, table: CrystalTable, values: np.ndarray) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "material_id", "cif", "y"])
        for i, crystal in enumerate(table):
            a, b, c = crystal.lengths
            alpha, beta, gamma = crystal.angles
            names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
            text = [f"data_{i}"]
            text += [f"_cell_{n} {v:.8f}" for n, v in zip(names, (a, b, c, alpha, beta, gamma), strict=True)]
            text += ["loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'", "loop_", "_atom_site_type_symbol"]
            text += [f"_atom_site_fract_{x}" for x in "xyz"] + ["_atom_site_occupancy"]
            for symbol, xyz in zip(crystal.symbols, crystal.frac_coords, strict=True):
                text.append(f"{symbol} {xyz[0]:.8f} {xyz[1]:.8f} {xyz[2]:.8f} 1")
            writer.writerow([i, crystal.name, "\n".join(text) + "\n", repr(float(values[i]))])


class Set:
    """A small set with train, val, test: its manifest, and its files in a folder."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.tables = {"train": crystals(0, 12), "val": crystals(100, 4), "test": crystals(200, 5)}
        self.values = {
            k: np.random.default_rng(1).normal(size=len(t)).round(6) for k, t in self.tables.items()
        }
        files = {}
        for key, table in self.tables.items():
            path = folder / "toy" / f"{key}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.to_arrow().append_column("y", pa.array(self.values[key])), path)
            write_csv(folder / f"{key}.csv", table, self.values[key])
            files[key] = File(
                path=f"toy/{key}.parquet",
                rows=len(table),
                sha256=vault.sha256_of(path),
                fingerprint=table.fingerprint(),
                values={"y": values_hash(self.values[key])},
                originals=[Original(url=(folder / f"{key}.csv").as_uri())],
            )
        self.manifest = Manifest(
            name="toy",
            title="Toy",
            description="",
            licence="",
            citations=[],
            default_target="y",
            split=Split(kind="files", official=True, description="three files"),
            files=files,
            targets={"y": TargetInfo(description="a number", unit="eV")},
        ).model_copy(update=changes)

    def without_originals(self) -> Manifest:
        files = {k: f.model_copy(update={"originals": []}) for k, f in self.manifest.files.items()}
        return self.manifest.model_copy(update={"files": files})


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    monkeypatch.setenv("FACETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FACETRY_DATA", raising=False)
    monkeypatch.delenv("FACETRY_MIRROR", raising=False)
    return Set(tmp_path / "published")


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*.part")]


def test_folders_are_searched_in_order_then_the_cache(toy, tmp_path, monkeypatch):
    manifest = toy.without_originals()
    monkeypatch.setenv("FACETRY_DATA", os.pathsep.join([str(tmp_path / "none"), str(toy.folder)]))
    assert vault.find(manifest, "val") == toy.folder / "toy" / "val.parquet"
    monkeypatch.delenv("FACETRY_DATA")
    cached = tmp_path / "cache" / "data" / "toy" / "val.parquet"
    cached.parent.mkdir(parents=True)
    cached.write_bytes((toy.folder / "toy" / "val.parquet").read_bytes())
    assert vault.find(manifest, "val") == cached


def test_what_is_nowhere_is_told_with_every_place(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("FACETRY_DATA", str(tmp_path / "mine"))
    for path in toy.folder.glob("*.csv"):
        path.unlink()
    with pytest.raises(DataNotFound) as caught:
        vault.find(toy.manifest, "train")
    text = str(caught.value)
    for part in (
        "toy/train.parquet (Toy, 12 crystals, sha256 " + toy.manifest.files["train"].sha256,
        str(tmp_path / "mine" / "toy" / "train.parquet"),
        str(tmp_path / "cache" / "data" / "toy" / "train.parquet"),
        toy.manifest.files["train"].originals[0].url + ": not reachable",
        "facetry dataset import toy FILE",
    ):
        assert part in text
    with pytest.raises(DataNotFound, match="No address for it is known"):
        vault.find(toy.without_originals(), "train")


@pytest.mark.parametrize("damage", ["truncated", "changed", "other"])
def test_a_file_that_is_not_the_one_is_refused(toy, monkeypatch, damage):
    path = toy.folder / "toy" / "test.parquet"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    else:
        path.write_bytes((toy.folder / "toy" / "train.parquet").read_bytes())
    monkeypatch.setenv("FACETRY_DATA", str(toy.folder))
    with pytest.raises(
        DataCorrupt, match=rf"test.parquet: expected sha256 {toy.manifest.files['test'].sha256}, found"
    ):
        vault.find(toy.manifest, "test")


def test_an_original_is_downloaded_converted_and_kept(toy, tmp_path):
    splits = named_splits(toy.manifest, None, None)  # the addresses are file:// ones
    assert splits.counts == {"train": 12, "val": 4, "test": 5}
    np.testing.assert_array_equal(splits.train.targets[:, 0], toy.values["train"])
    assert splits.train.crystals.fingerprint() == toy.tables["train"].fingerprint()
    for path in toy.folder.glob("*.csv"):
        path.unlink()
    assert named_splits(toy.manifest, None, None).hash == splits.hash
    assert not leftovers(tmp_path)


def test_a_mirror_over_http(toy, tmp_path, monkeypatch):
    handler = functools.partial(Quiet, directory=str(toy.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("FACETRY_MIRROR", f"{base}/missing {base}/")
        path = vault.find(toy.without_originals(), "val")
        assert path == tmp_path / "cache" / "data" / "toy" / "val.parquet"
        assert vault.sha256_of(path) == toy.manifest.files["val"].sha256
        (toy.folder / "toy" / "test.parquet").write_bytes(b"something else")
        with pytest.raises(
            DataNotFound, match=r"missing/toy/test.parquet: the server answered 404[\s\S]*expected sha256"
        ):
            vault.find(toy.without_originals(), "test")
        monkeypatch.setattr(vault, "MAX_BYTES", 100)
        with pytest.raises(DataNotFound, match="stopped after 0 MiB"):
            vault.find(toy.without_originals(), "train")
    finally:
        server.shutdown()
        server.server_close()
    assert not leftovers(tmp_path)
    assert not (tmp_path / "cache" / "data" / "toy" / "test.parquet").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_importing_by_hand(toy, tmp_path):
    manifest = toy.manifest
    done = vault.import_files(manifest, toy.folder / "toy" / "val.parquet")
    done += vault.import_files(manifest, toy.folder / "train.csv")
    assert done == [tmp_path / "cache" / "data" / "toy" / f"{k}.parquet" for k in ("val", "train")]
    assert len(vault.import_files(manifest, toy.folder)) == 3  # a whole folder of them
    assert named_splits(toy.without_originals(), "y", None).counts == {"train": 12, "val": 4, "test": 5}


def test_importing_what_does_not_belong(toy, tmp_path):
    write_csv(tmp_path / "other.csv", crystals(0, 11), np.zeros(11))
    with pytest.raises(DataCorrupt, match=r"not toy/train.parquet: expected 12 crystals, got 11"):
        vault.import_files(toy.manifest, tmp_path / "other.csv")
    write_csv(tmp_path / "other.csv", toy.tables["train"], np.zeros(12))
    with pytest.raises(DataCorrupt, match="other values of y"):
        vault.import_files(toy.manifest, tmp_path / "other.csv")
    moved = toy.tables["train"].frac_coords.copy()
    moved[3, 1] += 1e-7
    changed = CrystalTable(toy.tables["train"].lattice, moved, *_rest(toy.tables["train"]))
    write_csv(tmp_path / "other.csv", changed, toy.values["train"])
    with pytest.raises(DataCorrupt, match="other crystals, order or coordinates"):
        vault.import_files(toy.manifest, tmp_path / "other.csv")
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataCorrupt, match="expected a column named cif"):
        vault.import_files(toy.manifest, tmp_path / "text.csv")
    with pytest.raises(DataNotFound, match="no such file"):
        vault.import_files(toy.manifest, tmp_path / "gone.csv")


def _rest(table: CrystalTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return table.atomic_numbers, table.offsets, table.names


def test_an_official_file_of_unknown_hash_is_known_by_what_it_holds(toy, tmp_path, monkeypatch):
    """As mp20: a part of train is there, the whole may be imported."""
    part = toy.tables["train"].select(slice(2, 9, 3))
    arrow = part.to_arrow().append_column("y", pa.array(toy.values["train"][2:9:3]))
    pq.write_table(arrow, toy.folder / "toy" / "part.parquet")
    files = dict(toy.manifest.files)
    files["part"] = File(
        path="toy/part.parquet",
        rows=3,
        part_of=12,
        sha256=vault.sha256_of(toy.folder / "toy" / "part.parquet"),
    )
    files["train"] = File(
        path="toy/full.parquet", rows=12, contains="part", originals=files["train"].originals
    )
    scheme = toy.manifest.split.model_copy(update={"train": "part"})
    manifest = toy.manifest.model_copy(
        update={"files": files, "split": scheme, "complete": False, "incomplete": "3 of 12"}
    )
    monkeypatch.setenv("FACETRY_DATA", str(toy.folder))
    splits = named_splits(manifest, "y", None)
    assert (len(splits.train), splits.complete, splits.official) == (3, False, True)
    assert splits.notes == ("3 of 12",)
    wrong = CrystalTable.concatenate(
        [toy.tables["train"].select(slice(0, 11)), toy.tables["val"].select([0])]
    )
    write_csv(tmp_path / "wrong.csv", wrong, np.zeros(12))
    with pytest.raises(DataCorrupt, match="1 of its crystals belong to val"):
        vault.import_files(manifest, tmp_path / "wrong.csv")
    write_csv(tmp_path / "wrong.csv", crystals(300, 12), np.zeros(12))
    with pytest.raises(DataCorrupt, match="3 of the 3 crystals of part are not in it"):
        vault.import_files(manifest, tmp_path / "wrong.csv")
    vault.import_files(manifest, toy.folder / "train.csv")
    splits = named_splits(manifest, "y", None)
    assert (len(splits.train), splits.complete, splits.notes) == (12, True, ())


def test_a_cif_table_that_is_not_p1_is_refused(toy, tmp_path):
    text = (toy.folder / "val.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace("'x, y, z'", "'x, y, z'\n'-x, -y, -z'", 1))
    with pytest.raises(TableError, match=r"row 1 \(id-100\): expected a CIF in P1, it lists 2"):
        read_cif_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(text.replace(" 1\n", " 0.5\n", 1))
    with pytest.raises(TableError, match="expected full occupancies"):
        read_cif_table(tmp_path / "a.csv")


def test_feather_and_gzip_are_read_alike(toy, tmp_path):
    import gzip

    import pyarrow.csv
    import pyarrow.feather

    path = toy.folder / "val.csv"
    (tmp_path / "val.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    pyarrow.feather.write_feather(pyarrow.csv.read_csv(path, parse_options=options), tmp_path / "val.feather")
    for other in ("val.csv.gz", "val.feather"):
        table, columns = read_cif_table(tmp_path / other)
        assert table.fingerprint() == toy.tables["val"].fingerprint()
        np.testing.assert_array_equal(columns["y"], toy.values["val"])


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file.bin"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(VaultError, match=r"file.bin: no space left while writing") as caught,
        vault.atomic_write(target) as stream,
    ):
        stream.write(b"x" * 1000)
    assert caught.value.errno == errno.ENOSPC
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_real_write_error_leaves_nothing_half_written(tmp_path):
    code = f"""
import atexit, resource, signal
from facetry.data import vault
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, before)  # coverage is written then
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, before[1]))
try:
    with vault.atomic_write(__import__("pathlib").Path({str(tmp_path)!r}) / "f.bin") as stream:
        stream.write(b"x" * 100000)
except vault.VaultError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "f.bin: no space left while writing" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ones_own_keeps_the_old_file(tmp_path):
    target = tmp_path / "f"
    target.write_bytes(b"old")

    def fails() -> None:
        with vault.atomic_write(target) as stream:
            stream.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_derived_arrays_are_built_once_and_again_when_damaged(toy, tmp_path, caplog):
    calls = []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(6).reshape(2, 3), "b": np.array([1.5, np.nan]), "none": np.zeros((0, 3))}

    key = {"data": "abc", "graph": {"k": 25}, "code": vault.code_hash(vault)}
    first, second = vault.cached(key, build), vault.cached(key, build)
    assert len(calls) == 1
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)
        assert second[name].dtype == value.dtype
    vault.cached(key | {"graph": {"k": 12}}, build)
    assert len(calls) == 2
    path = vault.cache_path(key)
    data = path.read_bytes()
    for broken in (data[:-1] + bytes([data[-1] ^ 4]), data[:50], b""):
        path.write_bytes(broken)
        np.testing.assert_array_equal(vault.cached(key, build)["a"], first["a"])
    assert len(calls) == 5
    assert "building it again" in caplog.text
    assert not leftovers(tmp_path)


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FACETRY_CACHE", str(tmp_path / "file"))
    assert vault.cached({"x": 1}, lambda: {"a": np.ones(3)})["a"].sum() == 3
    assert "not cached" in caplog.text


def test_cache_folder_per_platform(monkeypatch):
    monkeypatch.delenv("FACETRY_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert vault.cache_folder() == Path("/somewhere/facetry")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert vault.cache_folder().parts[-3:] == ("Library", "Caches", "facetry")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert vault.cache_folder() == Path("/local/facetry")
