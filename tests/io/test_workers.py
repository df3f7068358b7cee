"""Parsing in worker processes: a file that hangs, crashes or eats memory takes nobody with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from facetry.crystal import Crystal
from facetry.io import ReadError, parse, pool, read, read_many, write
from facetry.io.protocol import receive, results_from, results_message, send

SALT = Crystal(np.diag([4.0, 4.0, 4.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17], name="salt")
AXES = (("a", "alpha"), ("b", "beta"), ("c", "gamma"))
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="stops processes by POSIX signals")


@pytest.fixture
def many(tmp_path):
    for i in range(120):
        SALT.write(tmp_path / f"{i:03d}.cif")
    return tmp_path


@pytest.fixture
def slow(tmp_path):
    """A file that takes seconds to read: far more atoms than any time limit here allows."""
    rng = np.random.default_rng(0)
    sites = "\n".join(f"C {x:.5f} {y:.5f} {z:.5f} 0.5" for x, y, z in rng.uniform(0, 1, (90_000, 3)))
    lengths = "".join(f"_cell_length_{axis} 900\n_cell_angle_{angle} 90\n" for axis, angle in AXES)
    columns = "".join(f"_atom_site_{c}\n" for c in ("label", "fract_x", "fract_y", "fract_z", "occupancy"))
    path = tmp_path / "050-slow.cif"
    path.write_text(f"data_slow\n{lengths}loop_\n{columns}{sites}\n")
    return path


def test_messages_survive_the_pipe(tmp_path):
    mixed = SALT.replace(occupancies=[{55: 0.5, 37: 0.25}, 1.0], notes=("a guess",))
    results = [("salt", SALT), ("bad", ReadError("f", "why")), ("mixed", mixed)]
    path = tmp_path / "pipe"
    with open(path, "wb") as stream:
        send(stream, *results_message(results))
    with open(path, "rb") as stream:
        back, more = results_from(*receive(stream))
        assert not more
        assert receive(stream) is None  # the other side has gone
    assert [name for name, _ in back] == ["salt", "bad", "mixed"]
    assert back[0][1] == SALT
    assert str(back[1][1]) == "f: why"
    assert back[2][1] == mixed
    assert back[2][1].notes == ("a guess",)
    path.write_bytes(path.read_bytes()[:20])
    with open(path, "rb") as stream:
        assert receive(stream) is None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_that_of_the_input(many, workers):
    (many / "060.cif").write_text("rubbish")
    readings = list(read_many(many, workers=workers))
    assert [r.name for r in readings] == [f"{i:03d}" for i in range(120)]
    assert [i for i, r in enumerate(readings) if isinstance(r.result, ReadError)] == [60]


def test_slow_file_is_stopped_and_the_rest_goes_on(many, slow):
    read(many / "000.cif")  # the worker is up: only the file is timed
    start = time.monotonic()
    readings = list(read_many(many, time_limit=0.7))
    assert time.monotonic() - start < 30
    assert len(readings) == 121
    failed = [r for r in readings if isinstance(r.result, ReadError)]
    assert [r.source for r in failed] == [str(slow)]
    assert "not read within 0.7 s" in str(failed[0].result)
    assert readings.index(failed[0]) == 50


def idle_pid() -> int:
    (worker, *_) = [w for w in pool._idle if w.process.poll() is None]
    return worker.process.pid


@needs_signals
def test_worker_that_dies_is_replaced(many):
    read(many / "000.cif")
    victim = idle_pid()
    readings = read_many(many)
    first = next(readings)
    os.kill(victim, signal.SIGKILL)
    rest = list(readings)
    assert isinstance(first.result, Crystal)
    crashed = [r for r in rest if isinstance(r.result, ReadError)]
    assert len(rest) == 119
    assert len(crashed) <= 1  # the file that was at work, if any was
    assert all("crashed" in str(r.result) for r in crashed)


@needs_signals
def test_worker_that_stands_still_is_replaced(many):
    read(many / "000.cif")
    os.kill(idle_pid(), signal.SIGSTOP)
    readings = list(read_many(many, time_limit=0.5))
    failed = [r for r in readings if isinstance(r.result, ReadError)]
    assert [r.name for r in failed] == ["000"]
    assert "not read within" in str(failed[0].result)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processor time is read from /proc")
def test_a_worker_without_a_turn_is_not_blamed_on_its_file(many):
    """As on a crowded machine, or in a job that its scheduler suspends for a while."""
    read(many / "000.cif")
    victim = idle_pid()
    os.kill(victim, signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (victim, signal.SIGCONT)).start()
    readings = list(read_many(many, time_limit=1.0))
    assert [r.name for r in readings if isinstance(r.result, ReadError)] == []
    assert len(readings) == 120


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory limit is enforced on Linux")
def test_file_that_needs_too_much_memory(many):
    (many / "050-large.json").write_text("[" * 60_000_000)
    readings = list(read_many(many, memory_limit=500 * 1024**2))
    (failed,) = [r for r in readings if isinstance(r.result, ReadError)]
    assert failed.name == "050-large"
    assert len(readings) == 121


def test_many_structures_in_one_file(tmp_path):
    frames = [SALT.replace(name=f"f{i}") for i in range(1000)]
    write(frames, tmp_path / "path.extxyz")
    assert [r.name for r in read_many(tmp_path)] == [f"f{i}" for i in range(1000)]


def test_files_that_are_no_files(tmp_path):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.cif")
        (result,) = read(tmp_path, errors="return")
        assert "no regular file" in str(result)


def test_giving_up_in_the_middle(many, slow):
    readings = read_many(many)
    next(readings)
    start = time.monotonic()
    readings.close()
    assert time.monotonic() - start < 5


def test_bounded_look_ahead(many):
    taken = 0

    def paths():
        nonlocal taken
        for _ in range(40):
            for path in sorted(many.glob("*.cif")):
                taken += 1
                yield path

    readings = read_many(paths())
    for _ in range(100):
        next(readings)
    assert taken < 600
    readings.close()


def test_faults_of_ours_become_errors(monkeypatch):
    from facetry.io import formats

    def fault(*_arguments, **_options):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(formats, "read_poscar", fault)
    ((name, result),) = parse(b"x", "POSCAR")
    assert name == "POSCAR"
    assert str(result) == "POSCAR: could not be read (ZeroDivisionError: oh)"


def test_bad_options(many):
    with pytest.raises(ValueError, match="workers must not be negative"):
        read_many(many, workers=-1)
    with pytest.raises(ValueError, match="time_limit must be above 0"):
        read_many(many, time_limit=0)


def test_threads_may_read_at_once(many):
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(read(many)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [120] * 3


def test_script_without_a_main_guard(many):
    script = f"import facetry\nprint(len(facetry.read({str(many)!r})))\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=many
    )
    assert done.stdout.strip() == "120"
    assert done.stderr == ""


def test_worker_is_light():
    script = (
        "import sys, facetry.io.worker\n"
        "heavy = {'torch', 'lightning', 'ase', 'pymatgen', 'pandas', 'scipy', 'matplotlib', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
