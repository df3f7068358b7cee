"""What a receipt tells, and what it keeps to itself."""

from __future__ import annotations

import sys

from facetry.training.receipt import command_line


def test_command_without_folders_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["train", "icomformer-perov5", "-o", str(tmp_path / "runs" / "a"), "--set", "training.steps=4"]
    monkeypatch.setattr(sys, "argv", ["/opt/bin/facetry", *given, "--data=/home/me/my crystals"])
    expected = "facetry train icomformer-perov5 -o runs/a --set training.steps=4 '--data=my crystals'"
    assert command_line() == expected
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py", "train", "--resume", "/root/run-7", "-o", "runs/b"])
    assert command_line() == "facetry train --resume run-7 -o runs/b"
