"""Tables keep what is finished: on kill, on a full disk, in every format."""

import csv
import json
import os
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest

from facetry.tasks.table_writer import TableWriteError, TableWriter, check_suffix

COLUMNS = {"source": "text", "atoms": "int", "value": "float", "in_domain": "bool", "message": "text"}
ROWS = [
    {"source": "a, b.cif", "atoms": 5, "value": 0.1 + 0.2, "in_domain": True, "message": ""},
    {"source": 'c"d.cif', "atoms": None, "value": None, "in_domain": None, "message": "two\nlines"},
    {"source": "é.cif", "atoms": 1, "value": -1e-7, "in_domain": False, "message": "x"},
]


def test_csv(tmp_path):
    with TableWriter(tmp_path / "out.csv", COLUMNS) as table:
        table.write(ROWS[:1])
        # what is written is there at once, before close
        assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 2
        table.write(ROWS[1:])
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [r["source"] for r in rows] == [r["source"] for r in ROWS]
    assert float(rows[0]["value"]) == pytest.approx(0.3, abs=1e-10)
    assert rows[0]["in_domain"] == "true"
    assert rows[1] == {"source": 'c"d.cif', "atoms": "", "value": "", "in_domain": "", "message": "two lines"}


def test_jsonl(tmp_path):
    with TableWriter(tmp_path / "out.jsonl", COLUMNS) as table:
        table.write([*ROWS, {"source": "n", "value": float("nan")}])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[:3] == ROWS
    assert rows[3]["value"] is None


def test_parquet(tmp_path):
    with TableWriter(tmp_path / "out.parquet", COLUMNS) as table:
        table.write(ROWS)
        assert (tmp_path / "out.parquet.rows.csv").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("atoms").to_pylist() == [5, None, 1]
    assert table.column("in_domain").to_pylist() == [True, None, False]
    assert table.column("value").to_pylist()[1] is None
    assert table.column("message").to_pylist() == ["", "two lines", "x"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_no_rows_gives_an_empty_table(tmp_path, suffix):
    with TableWriter(tmp_path / f"out{suffix}", COLUMNS):
        pass
    assert (tmp_path / f"out{suffix}").exists()


def test_names_are_checked_before_work_starts(tmp_path):
    with pytest.raises(ValueError, match=r"\.csv, \.jsonl, \.parquet"):
        check_suffix(tmp_path / "out.xlsx")
    with pytest.raises(FileNotFoundError, match="missing"):
        check_suffix(tmp_path / "missing" / "out.csv")


def test_an_old_table_is_left_alone_until_there_is_a_row(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), TableWriter(path, COLUMNS):
        raise RuntimeError
    assert path.read_text() == "old"


FULL_DISK = textwrap.dedent(
    """
    import atexit, resource, sys
    from facetry.tasks.table_writer import TableWriter, TableWriteError
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, before)  # coverage is written then
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # the kernel lets no file grow further
    table = TableWriter(sys.argv[1], {"source": "text", "value": "float"})
    try:
        for i in range(1000):
            table.write([{"source": f"file-{i}.cif", "value": i / 7}])
    except TableWriteError as error:
        print(error)
        sys.exit(7)
    """
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_full_disk_keeps_whole_rows(tmp_path, name):
    path = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    written = tmp_path / (f"{name}.rows.csv" if name.endswith(".parquet") else name)
    text = written.read_text()
    assert text.endswith("\n")
    rows = len(text.splitlines()) - (not name.endswith(".jsonl"))
    assert rows > 20
    assert f"the {rows} finished rows are kept" in done.stdout
    assert "no space left" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_space(tmp_path):
    link = tmp_path / "out.csv"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space left"):
        TableWriter(link, COLUMNS).write(ROWS)


def test_a_folder_in_the_way_is_a_mistake_and_errors_have_no_number(tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        check_suffix(tmp_path / "out.csv")
    error = TableWriteError(28, "out.csv: could not be written (no space left on the disk)")
    assert str(error).startswith("out.csv: could")
