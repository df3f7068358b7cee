"""Matching in worker processes: every pair has a time limit, and none can stop the others.

Workers are plain Python processes started from scratch, so scripts need no `__main__` guard. A task is one
reference and some candidates; answers come pair by pair, so the pair at fault is known when a worker runs
over the limit or dies. It is answered with the reason, and a new worker goes on after it.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from facetry.crystal import Crystal
from facetry.evaluation.match_worker import Answer, Pairs
from facetry.io.child import STARTUP, Child
from facetry.io.protocol import receive, results_message, send

__all__ = ["MatchTask", "match_pairs"]

_CODE = "from facetry.evaluation.match_worker import main; main()"


@dataclass(frozen=True)
class MatchTask:
    """One reference and candidates, each with a number by which it is known in other tasks too."""

    reference: tuple[int, Crystal]
    candidates: Sequence[tuple[int, Crystal]]


class _Worker(Child):
    """One process. `busy_since` is when the pair at work was begun, None between tasks."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(_CODE)
        self.options = options
        self.busy_since: float | None = None

    def run(self, task: MatchTask, start: int) -> Iterator[Answer]:
        """Answers from candidate `start` on; ends early where the process dies."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        key, reference = task.reference
        rest = task.candidates[start:]
        crystals = dict([(key, reference), *rest])
        header, body = results_message([(c.name, c) for c in crystals.values()])
        request = {"crystals": header, "keys": list(crystals), "pairs": [[key, k] for k, _ in rest]}
        self.busy_since = time.monotonic()
        try:
            if not self.started:
                send(self.process.stdin, self.options)
                message = receive(self.process.stdout)
                if message is None:
                    return
                if message[0] != "ready":
                    raise ImportError(message[0])
                self.started = True
            self.busy_since = time.monotonic()
            send(self.process.stdin, request, body)
            for _ in rest:
                message = receive(self.process.stdout)
                if message is None:
                    return
                self.busy_since = time.monotonic()
                yield message[0]
        except OSError:  # the pipe broke: the process is gone
            return
        finally:
            self.busy_since = None


class _Pool:
    """Threads that each feed one worker, and one that watches the clock."""

    def __init__(self, workers: int, time_limit: float | int | None, options: dict[str, Any]) -> None:
        self.time_limit, self.options = time_limit, options
        self.tasks: queue.SimpleQueue[tuple[int, MatchTask] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[int, list[Answer] | BaseException]] = queue.SimpleQueue()
        self.current: dict[int, _Worker] = {}
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(workers)]
        watchers = (
            [threading.Thread(target=self._watch, args=(time_limit,), daemon=True)] if time_limit else []
        )
        for thread in (*self.threads, *watchers):
            thread.start()

    def _serve(self, index: int) -> None:
        while (item := self.tasks.get()) is not None:
            number, task = item
            try:
                self.answers.put((number, self._answers(index, task)))
            except BaseException as error:  # must reach the caller: it waits for this task
                self.answers.put((number, error))
        if worker := self.current.pop(index, None):
            worker.stop()

    def _answers(self, index: int, task: MatchTask) -> list[Answer]:
        done: list[Answer] = []
        while len(done) < len(task.candidates) and not self.closing.is_set():
            worker = self.current.get(index) or self.current.setdefault(index, _Worker(self.options))
            done.extend(worker.run(task, len(done)))
            if len(done) == len(task.candidates) or self.closing.is_set():
                break
            # the process is gone: the first pair without an answer did it
            worker.stop()
            self.current.pop(index, None)
            if not worker.started:
                raise RuntimeError(
                    f"the matching process did not start (exit code {worker.process.returncode}): "
                    f"{sys.executable} could not import facetry.evaluation.match_worker"
                )
            done.append(
                [None, f"no answer within {self.time_limit:g} s; allow more with time_limit"]
                if worker.overdue
                else [None, f"the matcher crashed (exit code {worker.process.returncode})"]
            )
        return done

    def _watch(self, limit: float | int) -> None:
        while not self.closing.wait(min(0.1, limit / 4)):
            now = time.monotonic()
            for worker in list(self.current.values()):
                allowed = limit if worker.started else max(limit, STARTUP)
                since = worker.busy_since
                if since is not None and now - since > allowed:
                    worker.overdue = True
                    worker.process.kill()

    def close(self) -> None:
        self.closing.set()
        for worker in list(self.current.values()):
            worker.process.kill()
        for _ in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            thread.join()


def match_pairs(
    tasks: Sequence[MatchTask],
    workers: int,
    time_limit: float | int | None = 60.0,
    options: dict[str, Any] | None = None,
) -> Iterator[list[Answer]]:
    """The answers of every task, in the order of the tasks: [distance or None, reason or ""] per candidate.

    Args:
        tasks: what to match.
        workers: processes; 0 matches in this process, without a time limit.
        time_limit: seconds for one pair, the reduction of its cells included; None for no limit.
        options: of `Matcher`.

    A pair without an answer has a reason. Which worker takes which task does not show.
    """
    options = options or {}
    if workers == 0:
        pairs = Pairs(options)
        for task in tasks:
            yield [pairs.answer(task.reference, candidate) for candidate in task.candidates]
        return
    pool = _Pool(min(workers, max(len(tasks), 1)), time_limit, options)
    finished: dict[int, list[Answer] | BaseException] = {}
    try:
        sent = 0
        for number in range(len(tasks)):
            while number not in finished:
                while sent < len(tasks) and sent < number + 4 * workers:
                    pool.tasks.put((sent, tasks[sent]))
                    sent += 1
                done, answers = pool.answers.get()
                finished[done] = answers
            found = finished.pop(number)
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        pool.close()
