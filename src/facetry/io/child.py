"""A Python process that works for this one: started from scratch, spoken to through pipes, killed at will."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

STARTUP = 120.0  # s; a loaded machine may take long to start a Python
_PATH = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "


class Child:
    """One process that runs `code` with `arguments` in sys.argv[2:].

    `started` once it has answered; `overdue` where it was killed for taking too long. Its search path is that
    of this process, so that it runs the same facetry.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        # one thread each: the work is not linear algebra, and thread pools eat a memory limit
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.started = self.overdue = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PATH + code, json.dumps(sys.path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads},
        )

    def stop(self) -> None:
        """Kill it and close the pipes."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
