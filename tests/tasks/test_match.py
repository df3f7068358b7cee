"""Match: which candidate belongs to which reference, scores by hand, tables, exit codes."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest

from facetry.cli import run
from facetry.crystal import Crystal
from facetry.tasks.match import COLUMNS, Matches, match
from tests import crystals as known

pytest.importorskip("pymatgen.core")


def zno(shift: float, name: str = "") -> Crystal:
    """Wurtzite with oxygen moved along c: rms grows with the shift."""
    crystal = known.zno()
    frac = crystal.frac_coords + np.array([0, 0, shift]) * (crystal.atomic_numbers == 8)[:, None]
    return crystal.replace(frac_coords=frac, name=name)


def references() -> list[Crystal]:
    return [known.zno().replace(name="zno"), known.nacl().replace(name="salt"), known.si().replace(name="si")]


def here(*arguments, **options) -> Matches:
    return match(*arguments, workers=0, **options)


def test_scores_by_hand():
    far = Crystal(np.eye(3) * 4.5, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])  # CsCl: no match with NaCl
    charged = known.nacl().replace(atomic_numbers=[11, 11])
    found = here(
        references(),
        {"zno": [zno(0.05), zno(0.01), zno(0.02)], "salt": [far, charged, known.nacl()], "si": [known.cu()]},
    )
    rms = [p.rms for p in found.pairs]
    assert rms[0] > rms[2] > rms[1] > 0
    assert rms[3] is rms[4] is rms[6] is None
    assert rms[5] == pytest.approx(0, abs=1e-6)
    assert found.ks == [1, 3]
    assert found.match_rate(1) == pytest.approx(1 / 3)
    assert found.match_rate(3) == pytest.approx(2 / 3)
    assert found.rmse(1) == rms[0]
    assert found.rmse(3) == pytest.approx((rms[1] + rms[5]) / 2)
    assert found.crmse(3) == pytest.approx((rms[1] + rms[5] + 0.5) / 3)
    assert found.crmse(1) == pytest.approx((rms[0] + 1.0) / 3)
    assert found.failed == 0
    assert [p.rank for p in found.pairs] == [1, 2, 3, 1, 2, 3, 1]


def test_candidates_of_others_count_for_metre_only():
    polymorphs = [
        known.zns_blende().replace(name="a"),
        known.zno().replace(atomic_numbers=[30, 30, 16, 16], name="b"),
    ]
    swapped = [[polymorphs[1]], [polymorphs[0]]]
    found = here(polymorphs, swapped)
    assert found.match_rate(1) == 0
    assert math.isnan(found.rmse(1))
    assert found.metre(1) == 1
    assert found.crmse(1) == pytest.approx(0, abs=1e-6)
    assert found.summary()["scores"][0]["rmse"] is None
    assert found.references[0]["best_of_all"] == "a"
    alone = here(polymorphs, swapped, everyone=False)
    assert "metre" not in alone.summary()["scores"][0]
    assert alone.compared < found.compared


def test_the_validity_filter_takes_candidates_away():
    close = Crystal(np.eye(3) * 0.48, [[0, 0, 0]], [29])  # copper, but its images are 0.48 Å apart
    found = here([Crystal(np.eye(3) * 3, [[0, 0, 0]], [29], name="cu")], [[close]])
    assert (found.match_rate(1), found.match_rate(1, valid=True)) == (1, 0)
    assert (found.metre(1), found.metre(1, valid=True)) == (1, 0)
    assert found.crmse(1, valid=True) == 0.5
    assert found.pairs[0].valid is False
    assert "0.48 Å apart" in found.pairs[0].message
    assert found.pairs[0].status == "ok"


@pytest.mark.parametrize(
    ("names", "owners", "ranks"),
    [
        (["zno_10", "zno_9", "salt"], ["zno", "zno", "salt"], {"zno_9": 1, "zno_10": 2, "salt": 1}),
        (["zno-b", "zno-a"], ["zno", "zno"], {"zno-b": 1, "zno-a": 2}),
        (["zno#2", "other"], ["zno", ""], {"zno#2": 1, "other": None}),
        (["znotes_1", "si.cif@3"], ["", "si"], {"znotes_1": None, "si.cif@3": 1}),
    ],
)
def test_by_name(names, owners, ranks):
    found = here(references(), [zno(0.0, name) for name in names])
    assert {p.candidate: p.reference for p in found.pairs} == dict(zip(names, owners, strict=True))
    assert {p.candidate: p.rank for p in found.pairs} == ranks
    assert found.failed == owners.count("")


def test_the_longest_name_wins():
    pair = [known.zno().replace(name="mp-1"), known.nacl().replace(name="mp-1-2")]
    found = here(pair, [zno(0, "mp-1-2_3"), zno(0, "mp-1_3"), zno(0, "mp-12_3")])
    assert [(p.candidate, p.reference) for p in found.pairs] == [
        ("mp-1_3", "mp-1"), ("mp-1-2_3", "mp-1-2"), ("mp-12_3", ""),
    ]  # fmt: skip


def test_by_formula_and_by_order():
    crystals = [known.si(), known.nacl_conventional(), zno(0.01), zno(0.02), known.cu()]
    found = here(references(), crystals, by="formula")
    assert [p.reference for p in found.pairs] == ["zno", "zno", "salt", "si", ""]
    assert found.match_rate(1) == 1
    assert found.metre(1) == 1
    found = here(
        references(), [zno(0.01), known.cu(), known.nacl(), known.cu(), known.si(), known.cu()], by="order"
    )
    assert found.match_rate(1) == 1
    assert [p.rank for p in found.pairs] == [1, 2] * 3


def test_mistakes_in_the_call():
    with pytest.raises(ValueError, match="no candidate belongs to a reference by its name"):
        here(references(), [known.cu()])
    with pytest.raises(ValueError, match="4 candidates for 3 references"):
        here(references(), [known.cu()] * 4, by="order")
    with pytest.raises(ValueError, match="no candidate has the reduced formula"):
        here(references(), [known.cu()], by="formula")
    with pytest.raises(ValueError, match="'gold' is the name of no reference"):
        here(references(), {"gold": [known.cu()]})
    with pytest.raises(ValueError, match="2 lists for 3 references"):
        here(references(), [[known.cu()], [known.cu()]])
    with pytest.raises(ValueError, match="two references are called 'zno'"):
        here([*references(), zno(0, "zno")], [zno(0, "zno_1")])


def test_without_pymatgen_the_command_to_type(folders, monkeypatch, capsys):
    from facetry.evaluation import matching

    matching._matcher_class.cache_clear()
    monkeypatch.setitem(sys.modules, "pymatgen.core.structure_matcher", None)
    monkeypatch.setitem(sys.modules, "pymatgen.analysis.structure_matcher", None)
    with pytest.raises(ImportError, match=r"pip install 'facetry\[csp\]'"):
        here(references(), references())
    assert run(["match", str(folders / "test"), str(folders / "made")]) == 2
    assert "pip install 'facetry[csp]'" in capsys.readouterr().err
    matching._matcher_class.cache_clear()


# --- files and the shell ------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for crystal in references():
        (tmp_path / "test").mkdir(exist_ok=True)
        crystal.write(tmp_path / "test" / f"{crystal.name}.cif")
    for name, crystal in (("zno/1", zno(0.02)), ("zno/2", zno(0.01)), ("salt/1", known.nacl_conventional())):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        crystal.write(tmp_path / "made" / f"{name}.cif")
    known.si().write(tmp_path / "made" / "si_1.cif")
    return tmp_path


def rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_folders_in_a_shell(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    assert run(["match", "test", "made", "-o", "out", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "3 references, 4 candidates, 0 failed" in captured.out
    assert "first 2, valid" in captured.out
    assert captured.err.strip() == "out/: matches.csv, references.csv, summary.json"
    table = rows("out/matches.csv")
    assert list(table[0]) == list(COLUMNS)
    assert [(r["reference"], r["rank"], r["status"], r["match"]) for r in table] == [
        ("salt", "1", "ok", "true"), ("si", "1", "ok", "true"), ("zno", "1", "ok", "true"),
        ("zno", "2", "ok", "true"),
    ]  # fmt: skip
    assert float(table[3]["rms"]) < float(table[2]["rms"])
    assert [r["best"] for r in rows("out/references.csv")] == ["1", "si_1", "2"]
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["scores"][0] == {
        "k": 1,
        "valid_only": False,
        **{k: summary["scores"][0][k] for k in ("match_rate", "rmse", "metre", "crmse")},
    }
    assert summary["scores"][0]["match_rate"] == 1


def test_bad_files_get_rows_and_exit_code_3(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    (folders / "made" / "zno" / "3.cif").write_text("nothing")
    known.cu().write(folders / "made" / "stray.cif")
    (folders / "test" / "broken.cif").write_text("nothing")
    assert run(["match", "test", "made", "-o", "out", "--json", "--workers", "1"]) == 3
    summary = json.loads(capsys.readouterr().out)
    assert summary["failed"] == 3
    assert summary["references"] == 3
    table = {r["candidate"]: r for r in rows("out/matches.csv")}
    assert table["3"]["status"] == "failed"
    assert (table["3"]["reference"], table["3"]["rank"]) == ("zno", "3")
    assert table["stray"]["message"] == "belongs to no reference"
    assert {r["reference"]: r["status"] for r in rows("out/references.csv")}["broken"] == "failed"


def test_a_table_says_whose_candidates_they_are(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    lines = ["file,reference", "made/zno/1.cif,zno", "made/salt/1.cif,salt", "made/si_1.cif,zno"]
    (folders / "made.csv").write_text("\n".join(lines) + "\n")
    found = here("test", "made.csv")
    assert [(p.reference, p.rank, p.rms is not None) for p in found.pairs] == [
        ("salt", 1, True), ("zno", 1, True), ("zno", 2, False),
    ]  # fmt: skip
    with open("text.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "cif", "reference"])
        table.writerow(["x", zno(0.0).to_text("cif"), "zno"])
    assert here("test", ["text.csv"]).pairs[0].reference == "zno"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["match", "test"], "CANDIDATES"),
        (["match", "test", "nowhere"], "nowhere"),
        (["match", "test", "made", "--by", "chance"], "--by chance: expected name"),
        (["match", "test", "made", "--stol", "0"], "site_tolerance"),
        (["match", "test", "made", "-o", "test/zno.cif"], "expected a folder"),
        (["match", "test", "made/si_1.cif", "--by", "order"], "1 candidates for 3 references"),
    ],
)
def test_mistakes_in_a_shell(folders, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folders)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
