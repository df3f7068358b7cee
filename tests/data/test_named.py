"""Every manifest against its data, and what the splits promise."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from facetry.data import SETS, CrystalTable, Splits, dataset, get, info, list_sets
from facetry.data.division import group_split
from facetry.data.manifest import TargetInfo
from facetry.data.named import target_column, whole_set
from facetry.data.vault import sha256_of

REAL = [name for name in list_sets() if not info(name).generated]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FACETRY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def real(data_folder, monkeypatch):
    monkeypatch.setenv("FACETRY_DATA", str(data_folder))
    return data_folder


def tables_of(name: str, folder) -> dict[str, pa.Table]:
    manifest = info(name)
    keys = [k for k in manifest.files if manifest.is_default(k)]
    if not all((folder / manifest.files[k].path).is_file() for k in keys):
        pytest.skip(f"{name} is not in FACETRY_DATA")
    return {k: pq.read_table(folder / manifest.files[k].path) for k in keys}


@pytest.mark.parametrize("name", list_sets())
def test_a_manifest_is_complete(name):
    manifest = info(name)
    assert manifest.name == name
    assert {SETS[alias] for alias in manifest.aliases} <= {name}
    assert manifest.licence
    assert manifest.citations
    assert manifest.sources
    assert manifest.complete == (not manifest.incomplete)
    assert bool(manifest.targets) == bool(manifest.default_target)
    if manifest.targets:
        assert manifest.default_target in manifest.targets
    for key, entry in manifest.files.items():
        assert entry.sha256 or entry.fingerprint or entry.originals
        assert not entry.contains or entry.contains in manifest.files
        assert manifest.is_default(key) or entry.originals or manifest.generated
    text = manifest.describe()
    for part in (manifest.title, *manifest.targets, *manifest.defects, *manifest.leaks, *manifest.citations):
        assert part in text
    assert manifest.to_dict()["rows"] == manifest.rows > 0


@pytest.mark.parametrize("name", REAL)
def test_a_manifest_tells_the_truth(name, real):
    manifest, tables = info(name), tables_of(name, real)
    for key, table in tables.items():
        entry = manifest.files[key]
        assert sha256_of(real / entry.path) == entry.sha256
        assert table.num_rows == entry.rows
        if entry.fingerprint:
            assert CrystalTable.from_arrow(table, name).fingerprint() == entry.fingerprint
        said = {"id", "atomic_numbers", "frac_coords", "lattice", *manifest.targets, *manifest.columns}
        said |= {e.column or n for n, e in manifest.extras.items()}
        said |= {t.split for t in manifest.targets.values()} | {manifest.split.column}
        unsaid = [c for c in table.column_names if c not in said and not c.startswith("bulk_")]
        assert not unsaid
    for target, about in manifest.targets.items():
        columns = [t[target] for t in tables.values() if target in t.column_names]
        values = np.concatenate([target_column(t, target, about, name) for t in tables.values()])
        assert np.isnan(values).sum() == about.missing
        assert sum(c.null_count for c in columns) == about.missing
        if about.range is not None:
            assert about.range == (np.nanmin(values), np.nanmax(values))
        if about.task == "binary":
            assert set(values) <= {0.0, 1.0}


@pytest.mark.parametrize("name", REAL)
def test_a_set_loads_with_every_target(name, real):
    manifest = info(name)
    tables_of(name, real)
    for target in [None, *manifest.targets]:
        splits = dataset(name, target=target)
        parts = [p for s in (splits.folds or [splits]) for p in s.parts.values()]
        assert all(len(p.crystals) == len(p.targets) == len(p.names) for p in parts)
        assert splits.complete == manifest.complete
        for split in splits.folds or [splits]:
            names = [set(p.names.tolist()) for p in split.parts.values()]
            assert len(set().union(*names)) == sum(map(len, names))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("perov5", (11356, 3787, 3785)),
        ("carbon24", (6091, 2032, 2030)),
        ("mp20", (1000, 9047, 9046)),
        ("mpts52", (4500, 500, 4048)),
        ("aflow_agl", (3433, 735, 736)),
        ("curated_cofs", (984, 0, 0)),
        ("mlearn_ff", (1262, 140, 164)),
        ("emt-alloys", (2385, 275, 295)),
    ],
)
def test_sizes(name, counts, real):
    if name != "emt-alloys":
        tables_of(name, real)
    splits = dataset(name)
    assert (len(splits.train), len(splits.val), len(splits.test)) == counts
    assert splits.official == (name not in ("mpts52", "curated_cofs"))
    assert splits.complete == (name not in ("mp20", "mpts52", "carbon24"))
    assert bool(splits.notes) == (not splits.complete or not splits.official or name == "mlearn_ff")


def test_what_is_missing_is_said_where_it_is_used(real, caplog, monkeypatch):
    tables_of("mp20", real)
    monkeypatch.setattr(sys.modules[Splits.__module__], "_WARNED", set())
    splits = dataset("mp20", limit={"val": 10})
    assert len(splits.val) == 10
    assert len(splits.test) == 9046
    assert splits.missing in splits.notes
    assert repr(splits)
    assert not caplog.messages
    assert len(splits.train) == len(splits.train) == 1000
    assert [m.partition(":")[0] for m in caplog.messages] == ["mp20 is incomplete"]
    assert not dataset("perov5").missing


def test_perov5_values(real):
    tables_of("perov5", real)
    part = dataset("perov5", target=["heat_ref", "heat_all"]).val
    row = part.names.tolist().index("18517")
    assert part.targets[row].tolist() == [2.709152583232041, 2.76]
    crystal = part.crystals[row]
    assert crystal.formula
    assert sorted(crystal.atomic_numbers) == [7, 7, 7, 29, 48]
    np.testing.assert_allclose(crystal.lattice, 4.27928426 * np.eye(3), atol=1e-12)
    assert crystal.frac_coords[0].tolist() == [0.00159044, 0.0, 0.0]


def test_folds_are_the_official_ones(real):
    tables_of("mb_jdft2d", real)
    splits = dataset("jdft2d")
    assert [len(f.test) for f in splits.folds] == [128, 127, 127, 127, 127]
    # MatBench: KFold(5, shuffle, seed 18012019) on the rows in order
    order = np.arange(636)
    np.random.RandomState(18012019).shuffle(order)
    names = pq.read_table(real / "mb_jdft2d" / "all.parquet")["id"].to_pylist()
    start = 0
    for i, fold in enumerate(splits.folds):
        end = start + len(fold.test)
        assert fold.test.names.tolist() == [names[k] for k in sorted(order[start:end])]
        assert len(fold.train) + len(fold.val) + len(fold.test) == 636
        assert dataset("jdft2d", fold=i).hash == fold.hash
        start = end
    with pytest.raises(AttributeError, match=r"divided into 5 folds, it has no train: pass fold=0 to fold=4"):
        _ = splits.train
    assert not hasattr(splits, "test")
    with pytest.raises(ValueError, match="folds 0 to 4, got fold=5"):
        dataset("jdft2d", fold=5)
    with pytest.raises(ValueError, match="perov5 has no folds"):
        dataset("perov5", fold=0)


def test_our_splits_keep_groups_together(real):
    for name, group in (("wbm_sample", "formula"), ("jarvis_vacancy", "jid")):
        tables = tables_of(name, real)
        splits = dataset(name)
        if group == "formula":
            sets = [set(p.crystals.formulas) for p in splits.parts.values()]
        else:
            host = dict(zip(tables["all"]["id"].to_pylist(), tables["all"][group].to_pylist(), strict=True))
            sets = [{host[n] for n in p.names} for p in splits.parts.values()]
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]
        total = sum(splits.counts.values())
        assert abs(len(splits.train) / total - 0.8) < 0.02


def test_targets_with_different_official_splits_are_refused(real):
    tables_of("jarvis_dft3d_subset", real)
    both = dataset("jarvis_dft3d_subset", target=["formation_energy_peratom", "optb88vdw_bandgap"])
    assert both.counts == {"train": 1507, "val": 208, "test": 197}
    with pytest.raises(ValueError, match=r"different official splits \(608 crystals would be in two parts\)"):
        dataset("jarvis_dft3d_subset", target=["formation_energy_peratom", "ehull"])


def test_classes_and_numbers_together(real):
    tables_of("mp_elastic", real)
    part = dataset("mp_elastic", target=["crystal_system", "K_Voigt"]).train
    system, modulus = part.target_info
    assert system.task == "multiclass"
    assert len(system.classes) == system.columns == 7
    assert set(part.targets[:, 0]) <= set(range(7))
    assert modulus.unit == "GPa"
    table = pq.read_table(real / "mp_elastic" / "all.parquet")
    row = table["id"].to_pylist().index(part.names[0])
    assert system.classes[int(part.targets[0, 0])] == table["crystal_system"][row].as_py()
    binary = dataset("mp_dielectric", target="pot_ferroelectric")
    assert binary.target_info[0].task == "binary"


def test_extras(real):
    tables_of("jarvis_vacancy", real)
    vacancies = dataset("jarvis_vacancy").test
    bulk = vacancies.extras["bulk"].values
    missing = bulk.num_atoms - vacancies.crystals.num_atoms
    assert set(missing.tolist()) <= {1, 3}
    part = dataset("mlearn_ff").test
    assert part.extras["forces"].values.shape == (part.crystals.num_atoms.sum(), 3)
    table = pq.read_table(real / "mlearn_ff" / "test.parquet")
    stress = part.extras["stress"].values
    for row in range(len(part)):
        element = part.names[row].split("-")[0]
        raw, ours = table["stress6_kbar"][row].as_py(), stress[row] / -6.241509e-4
        np.testing.assert_allclose(ours[:3], raw[:3], rtol=1e-6, atol=1e-9)
        if element == "Li":
            assert np.isnan(ours[3:]).all()
        else:  # xy, yz, xz for silicon and germanium, xy, xz, yz for the metals
            order = [4, 5, 3] if element in ("Si", "Ge") else [5, 4, 3]
            np.testing.assert_allclose(ours[3:], np.array(raw)[order], rtol=1e-6, atol=1e-9)
    tensors = dataset("mp_piezo").val.extras["piezoelectric_tensor"]
    assert tensors.values.shape[1:] == (3, 6)
    assert tensors.unit == "C/m^2"


def test_classes_come_from_text_from_integers_and_from_a_csv():
    about = TargetInfo(task="multiclass", class_range=(1, 230), description="space group")
    for values in ([221, None, 1], [221.0, None, 1.0], ["221", None, "1"]):
        column = target_column(pa.table({"g": values}), "g", about, "mine")
        np.testing.assert_array_equal(column, [220, np.nan, 0])
    with pytest.raises(ValueError, match="mine: g has values outside its classes: 231"):
        target_column(pa.table({"g": [231]}), "g", about, "mine")
    with pytest.raises(ValueError, match="mine: the file has no column h; it has g"):
        target_column(pa.table({"g": [1]}), "h", about, "mine")


def test_listing_sets_needs_no_torch():
    code = "import sys; from facetry.data import info, list_sets; [info(n).describe() for n in list_sets()]; "
    code += "print([m for m in ('torch', 'ase', 'pyarrow', 'pymatgen', 'matplotlib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_limit(real):
    tables_of("perov5", real)
    full, small, larger = dataset("perov5"), dataset("perov5", limit=50), dataset("perov5", limit=200)
    assert small.counts == {"train": 50, "val": 50, "test": 3785}
    assert set(small.train.names) < set(larger.train.names) < set(full.train.names)
    assert dataset("perov5", limit=50).hash == small.hash
    assert dataset("perov5", limit=50, seed=1).hash != small.hash
    assert small.test.hash == full.test.hash
    assert not small.complete
    assert "train 50 of 11356" in small.notes[-1]
    assert dataset("perov5", limit={"test": 7}).counts == {"train": 11356, "val": 3787, "test": 7}
    assert dataset("perov5", limit=10**6).hash == full.hash
    for wrong in (0, -3, {"all": 5}):
        with pytest.raises(
            ValueError, match="limit: expected train, val, test with numbers of crystals above zero"
        ):
            dataset("perov5", limit=wrong)


def test_hashes_see_every_change(real):
    tables_of("perov5", real)
    part = dataset("perov5").val
    assert part.hash == dataset("perov5").val.hash
    assert part.hash != part.select(np.arange(len(part))[::-1]).hash
    assert part.hash != part.select(slice(1, None)).hash
    assert part.hash != dataset("perov5", target="heat_ref").val.hash
    assert dataset("perov5").hash != dataset("perov5", target="heat_ref").hash


def test_names_are_found_however_they_are_written():
    assert info("Perov-5").name == info("perov_5").name == "perov5"
    assert info("jdft2d").name == "mb_jdft2d"
    with pytest.raises(ValueError, match=r"no data set and no file or folder 'mp21' \(did you mean mp20"):
        info("mp21")
    with pytest.raises(
        ValueError, match=r"perov5 has no target 'heat_al' \(did you mean heat_all\?\); it has: heat_all"
    ):
        dataset("perov5", target="heat_al")
    with pytest.raises(ValueError, match="named twice"):
        dataset("perov5", target=["heat_all", "heat_all"])
    with pytest.raises(ValueError, match="group: only for your own files"):
        dataset("perov5", group="formula")


def test_get_tells_where_the_files_are(real):
    assert set(get("perov5")) == {"train", "val", "test"}
    assert get("emt-alloys")["all"].is_file()


def test_group_split_does_not_depend_on_the_order():
    groups = [str(i // 3) for i in range(300)]
    part = group_split(groups, (0.8, 0.1, 0.1), "salt")
    assert np.bincount(part).tolist() == pytest.approx([240, 30, 30], abs=3)
    shuffled = np.random.default_rng(0).permutation(300)
    again = group_split([groups[i] for i in shuffled], (0.8, 0.1, 0.1), "salt")
    np.testing.assert_array_equal(again, part[shuffled])
    assert (group_split(groups, (0.8, 0.1, 0.1), "pepper") != part).any()
    assert sorted(group_split(["a", "b", "c"], (0.8, 0.1, 0.1), "x")) == [0, 1, 2]
    assert group_split(["a"], (0.8, 0.1, 0.1), "x").tolist() in ([0], [1], [2])
    assert set(group_split(groups, (0.9, 0.1, 0.0), "x")) == {0, 1}


def test_columns_of_cells_of_numbers_are_what_pyarrow_says(real):
    tables_of("perov5", real)
    table = pq.read_table(real / "perov5" / "train.parquet")
    mean = pc.mean(table["heat_all"]).as_py()
    assert dataset("perov5").train.targets.mean() == pytest.approx(mean, rel=1e-12)


def test_a_complete_part_trains_where_the_training_part_is_missing(real):
    data = dataset("mp20", target="insulator", parts={"train": "val", "val": "train"})
    assert [len(part) for part in data.parts.values()] == [9047, 1000, 9046]
    assert not data.official
    assert any("train is val" in note for note in data.notes)


def test_a_whole_set_is_all_its_parts():
    whole, splits = whole_set(info("emt-alloys")), dataset("emt-alloys")
    assert len(whole) == sum(splits.counts.values())
    assert set(whole.names.tolist()) == {name for part in splits.parts.values() for name in part.names}
    assert [t.name for t in whole.target_info] == list(info("emt-alloys").targets)
