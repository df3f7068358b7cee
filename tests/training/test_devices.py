"""Two processes share the work of one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from tests.training import tiny
from facetry.training import train

if __name__ == "__main__":
    folder, devices = sys.argv[1], int(sys.argv[2])
    model = tiny.tiny_model(dropout=0.0, channels=4)
    model.normal = torch.nn.Identity()  # its statistics are those of each process's part
    data = tiny.tiny_data(100, missing=0.2)
    options = dict(epochs=3, batch_size=7, learning_rate=1e-2, precision="fp64", drop_last=False)
    options |= dict(devices=devices, accelerator="cpu", averaging="ema", gradient_clip=1.0)
    run = train(model, data, out=folder, **options)
    print("rank done", run.metrics["epoch"])
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    for devices in (1, 2):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error::UserWarning:facetry",
                str(script),
                str(tmp_path / f"run{devices}"),
                str(devices),
            ],
            capture_output=True,
            text=True,
            timeout=200,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("rank done") == devices
    one, two = (load_file(tmp_path / f"run{n}" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-11)
    receipts = [json.loads((tmp_path / f"run{n}" / "receipt.json").read_text()) for n in (1, 2)]
    assert receipts[1]["hardware"]["devices"] == 2
    rows = [(tmp_path / f"run{n}" / "metrics.csv").read_text().splitlines() for n in (1, 2)]
    for first, second in zip(*rows, strict=True):
        if not first.startswith("epoch"):
            numbers = [[float(x) for x in row.split(",")[:-1]] for row in (first, second)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
