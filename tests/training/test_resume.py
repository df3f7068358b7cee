"""A run that is killed, at any moment and however often, ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import facetry
from facetry.graph.batch import Batch
from facetry.models import IComFormer
from facetry.training import TrainingError, files, train
from facetry.training.files import WriteError, write_file
from facetry.training.state import Keeper
from tests.training.tiny import Tiny, tiny_data, tiny_model

OPTIONS = {
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "averaging": "ema",
    "accumulate": 2,
    "seed": 3,
    "checkpoint_seconds": 1e-6,
}


def go(folder: Path, pause: float = 0.0, **changes: object) -> None:
    """Start the run, or go on with it."""
    torch.set_num_threads(1)
    model = tiny_model()
    if pause:
        model.register_forward_hook(lambda *_: time.sleep(pause))
    if (folder / "recipe.toml").exists():
        train(model, tiny_data(), resume=folder, **changes)
    else:
        train(model, tiny_data(), out=folder, **{**OPTIONS, **changes})


def die_at(folder: Path, count: int) -> None:
    """Go on, and be killed before the count-th time that a file is synced, renamed, linked or removed."""
    left = [count]

    def deadly(original: Callable) -> Callable:
        def call(*arguments: object, **keywords: object) -> object:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (os, "link"), (shutil, "rmtree")):
        setattr(module, name, deadly(getattr(module, name)))
    go(folder)


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.BaseContext:
    """New processes in milliseconds, from a server that has imported all that is slow."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["facetry.training.run", "facetry.training.loop", "tests.training.tiny"])
    return server


def start(context: multiprocessing.context.BaseContext, target: Callable, *arguments: object):
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def finish(process: multiprocessing.process.BaseProcess) -> int:
    process.join(60)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def history(folder: Path) -> list[dict]:
    """All but the seconds."""
    point = Keeper(folder).load()
    assert point is not None
    return [{k: v for k, v in row.items() if k != "seconds"} for row in point.progress.history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(folder)
    return folder


def same(folder: Path, whole: Path) -> None:
    for name in ("model.safetensors", "recipe.toml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert history(folder) == history(whole)
    last = [Keeper(f).points()[-1] / "state.safetensors" for f in (folder, whole)]
    assert last[0].name == last[1].name
    assert last[0].read_bytes() == last[1].read_bytes()
    assert facetry.load(folder).card.metrics == facetry.load(whole).card.metrics
    assert not [p for p in folder.rglob("*") if ".writing-" in p.name]
    assert len(Keeper(folder).points()) == 1


def wait_for_progress(folder: Path, process: multiprocessing.process.BaseProcess) -> None:
    """Until the process has written a resume point that was not there before."""
    before = [p.name for p in Keeper(folder).points()]
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if [p.name for p in Keeper(folder).points()] not in (before, []):
            return
        time.sleep(0.001)


def test_killed_at_random_moments(context, whole: Path, tmp_path: Path) -> None:
    folder, seed, kills = tmp_path / "run", random.randrange(2**32), 0
    print("random.Random seed", seed)
    draw = random.Random(seed)
    while True:
        process = start(context, go, folder, 0.003)
        if kills < 6:
            wait_for_progress(folder, process)
            time.sleep(draw.uniform(0.0, 0.1))
            process.kill()
        code = finish(process)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        kills += 1
    assert kills >= 3
    same(folder, whole)
    assert json.loads((folder / "receipt.json").read_text())["starts"] == kills + 1


def test_killed_while_writing(context, whole: Path, tmp_path: Path) -> None:
    """Every third touch of the disk in turn is the last; each start gets a little further."""
    folder, count, kills = tmp_path / "run", 2, 0
    while finish(start(context, die_at, folder, count)) == -signal.SIGKILL:
        kills += 1
        count += 3
        facetry_files = [p for p in folder.glob("*") if ".writing-" not in p.name]
        if any(p.name == "model.json" for p in facetry_files):
            facetry.load(folder)  # what has a name is whole
        assert kills < 60
    assert kills > 8
    same(folder, whole)


def test_resume_of_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    go(folder, threads=1, checkpoint_seconds=5.0)
    same(folder, whole)


def test_resume_refuses_another_run(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch_size is 8 in this run and cannot become 16"):
        train(tiny_model(), tiny_data(), resume=whole, batch_size=16)
    with pytest.raises(TrainingError, match=r"model\.channels is 8 in this run, the model given has 6"):
        train(tiny_model(channels=6), tiny_data(), resume=whole)
    with pytest.raises(TrainingError, match="expected the data with hash"):
        train(tiny_model(), tiny_data(seed=1), resume=whole)
    with pytest.raises(TrainingError, match=r"found none; start the run again"):
        train(tiny_model(), tiny_data(), resume=tmp_path)


def test_ctrl_c_reaches_the_caller_and_the_run_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, left, handler = tmp_path / "run", [17], signal.getsignal(signal.SIGINT)
    original = Tiny.forward

    def interrupted(self: Tiny, batch: Batch) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"run: stopped; go on with facetry\.training\.resume"):
            go(folder)
    assert signal.getsignal(signal.SIGINT) is handler
    go(folder)
    same(folder, whole)


def test_a_model_that_draws_frames_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """iComFormer on cubic boxes, where 24 frames are tied and each step draws one of them."""
    data, options = tiny_data(30), {"epochs": 3, "batch_size": 6, "checkpoint_seconds": 1e-6}

    def model() -> IComFormer:
        torch.manual_seed(0)
        return IComFormer(channels=8, layers=1, k=6)

    train(model(), data, out=tmp_path / "whole", **options)
    original, left = IComFormer.training_batch, [8]

    def killed(self: IComFormer, batch: Batch, generator: torch.Generator) -> Batch:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        return original(self, batch, generator)

    with monkeypatch.context() as patch:
        patch.setattr(IComFormer, "training_batch", killed)
        with pytest.raises(MemoryError):
            train(model(), data, out=tmp_path / "run", **options)
    train(model(), data, resume=tmp_path / "run")
    same(tmp_path / "run", tmp_path / "whole")


# -- full disk -----------------------------------------------------------------------------------------------


def test_full_disk_is_named_and_the_point_before_stays(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, left = tmp_path / "run", [12]
    original = files._write_through

    def full(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] <= 0:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_through", full)
        with pytest.raises(WriteError, match="No space left on device") as caught:
            go(folder)
    assert caught.value.errno == errno.ENOSPC
    assert "is intact" in str(caught.value) or "is kept" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert Keeper(folder).load() is not None
    go(folder)
    same(folder, whole)


def write_too_much(folder: Path) -> None:
    """With a limit on file sizes the kernel refuses, as a full disk would, in the middle of the file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        write_file(folder / "model.safetensors", b"x" * 10_000)
    except WriteError as error:
        (folder / "message").write_text(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # whoever measures coverage writes afterwards


def test_a_file_that_does_not_fit_leaves_the_old_one(context, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    assert finish(start(context, write_too_much, tmp_path)) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"
    message = (tmp_path / "message").read_text()
    assert str(tmp_path / "model.safetensors") in message
    assert "free some space" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["message", "model.safetensors"]
