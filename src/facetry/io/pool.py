"""Parsing in worker processes: in order, with bounded memory, and no file can stop the others.

Workers are plain Python processes started from scratch, so scripts need no `__main__` guard and notebooks
work. Files go out in batches, answers come back one by one; that is how the file at fault is known when a
worker runs over the time limit or dies.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

from facetry.crystal import Crystal
from facetry.io.child import STARTUP, Child
from facetry.io.errors import ReadError
from facetry.io.formats import stem_of
from facetry.io.protocol import receive, results_from, send
from facetry.io.sources import Ready, Task

__all__ = ["parse_in_workers"]

Results = list[tuple[str, Crystal | ReadError]]

_BATCH_FILES = 32
_BATCH_BYTES = 1 << 20
_PATIENCE = 6  # times the limit, for a process that got little of the processor
_KEPT_IDLE = 2
_CODE = "from facetry.io.worker import main; main(int(sys.argv[2]))"


class _Worker(Child):
    """One process. `waited` is for how long it has been at the file at work, in s; None between batches.

    The watcher counts it, with the processor time before (`cpu_before`): neither a machine that was
    suspended nor one that gave the process no turn is the fault of a file.
    """

    def __init__(self, memory_limit: int) -> None:
        super().__init__(_CODE, str(memory_limit))
        self.memory_limit = memory_limit
        self.owner = os.getpid()
        self.waited: float | None = None
        self.cpu_before: float | None = None

    def run(self, tasks: list[Task], merge_within: float | int | None) -> Iterator[Results]:
        """Results of each task in turn; ends early where the process dies."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        header = [
            # absolute: a worker from an earlier call may sit in another working folder
            (t.source, t.format, os.path.abspath(t.path), _size(t), t.name, merge_within)
            for t in tasks
        ]
        self.overdue = False
        self.waited = 0.0
        try:
            if not self.started:
                if receive(self.process.stdout) is None:
                    return
                self.started = True
            self.waited = 0.0
            send(self.process.stdin, header, b"".join(t.data or b"" for t in tasks))
            for _ in tasks:
                results: Results = []
                more = True
                while more:
                    message = receive(self.process.stdout)
                    if message is None:
                        return
                    self.waited = 0.0
                    found, more = results_from(*message)
                    results += found
                yield results
        except OSError:  # the pipe broke: the process is gone
            return
        finally:
            self.waited = None

    def cpu_time(self) -> float | None:
        """Seconds of processor it has used so far, where the system tells."""
        try:
            with open(f"/proc/{self.process.pid}/stat", "rb") as stream:
                fields = stream.read().rsplit(b")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None

    def is_overdue(self, limit: float | int, passed: float) -> bool:
        """Whether its file has taken too long; to be called at every tick of the clock."""
        before = self.waited
        if before is None:
            return False
        if before == 0.0:
            self.cpu_before = self.cpu_time()
        waited = before + passed
        if self.waited != before:  # the reader went on to the next file, or is done
            return False
        self.waited = waited
        if waited <= limit:
            return False
        now = self.cpu_time()
        idle = now is not None and self.cpu_before is not None and now - self.cpu_before < limit / 2
        return waited > (_PATIENCE * limit if idle else limit)


def _size(task: Task) -> int | None:
    return None if task.data is None else len(task.data)


_idle: list[_Worker] = []
_idle_lock = threading.Lock()


def _take(memory_limit: int) -> _Worker:
    """A worker that waits from an earlier call, or a new one."""
    with _idle_lock:
        for worker in _idle:
            # a forked child must not talk into its parent's pipes
            if worker.owner == os.getpid() and worker.memory_limit == memory_limit:
                _idle.remove(worker)
                if worker.process.poll() is None:
                    return worker
                worker.stop()
                break
    return _Worker(memory_limit)


def _give(worker: _Worker) -> None:
    with _idle_lock:
        if worker.process.poll() is None and len(_idle) < _KEPT_IDLE:
            _idle.append(worker)
            return
    worker.stop()


@atexit.register
def _stop_idle() -> None:
    with _idle_lock:
        for worker in _idle:
            if worker.owner == os.getpid():
                worker.stop()
        _idle.clear()


class _Pool:
    """Threads that each feed one worker from a queue of batches, and one that watches the clock."""

    def __init__(
        self,
        workers: int,
        time_limit: float | int | None,
        memory_limit: int,
        merge_within: float | int | None,
    ) -> None:
        self.time_limit, self.memory_limit, self.merge_within = time_limit, memory_limit, merge_within
        self.batches: queue.SimpleQueue[tuple[int, list[Task]] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[int, list[Results] | BaseException]] = queue.SimpleQueue()
        self.current: dict[int, _Worker] = {}
        self.closing = threading.Event()
        self.threads = [
            threading.Thread(target=self._serve, args=(index,), daemon=True) for index in range(workers)
        ]
        if time_limit is not None:
            self.threads.append(threading.Thread(target=self._watch, args=(time_limit,), daemon=True))
        for thread in self.threads:
            thread.start()

    def _serve(self, index: int) -> None:
        while (batch := self.batches.get()) is not None:
            number, tasks = batch
            try:
                self.answers.put((number, self._parse(index, tasks)))
            except BaseException as error:  # must reach the caller: it waits for this batch
                self.answers.put((number, error))
        if worker := self.current.pop(index, None):
            if self.closing.is_set():
                worker.stop()
            else:
                _give(worker)

    def _parse(self, index: int, tasks: list[Task]) -> list[Results]:
        done: list[Results] = []
        while len(done) < len(tasks) and not self.closing.is_set():
            worker = self.current.get(index) or self.current.setdefault(index, _take(self.memory_limit))
            done.extend(worker.run(tasks[len(done) :], self.merge_within))
            if len(done) == len(tasks) or self.closing.is_set():
                break
            # the process is gone: the first file without an answer did it
            started, overdue = worker.started, worker.overdue
            worker.stop()
            self.current.pop(index, None)
            if not started:
                raise RuntimeError(
                    f"the parser process did not start (exit code {worker.process.returncode}): "
                    f"{sys.executable} could not import facetry.io.worker"
                )
            task = tasks[len(done)]
            reason = (
                f"not read within {self.time_limit:g} s, so it was stopped; allow more with time_limit"
                if overdue
                else f"the parser crashed on it (exit code {worker.process.returncode})"
            )
            done.append([(task.name or stem_of(task.source), ReadError(task.source, reason))])
        return done

    def _watch(self, limit: float | int) -> None:
        tick, last = min(0.1, limit / 4), time.monotonic()
        while not self.closing.wait(tick):
            now = time.monotonic()
            passed, last = min(now - last, 5 * tick), now  # less where this process was suspended itself
            for worker in list(self.current.values()):
                if worker.is_overdue(limit if worker.started else max(limit, STARTUP), passed):
                    worker.overdue = True
                    worker.process.kill()

    def close(self, finished: bool) -> None:
        if not finished:  # the caller has gone away: do not wait for what is still being parsed
            self.closing.set()
            for worker in list(self.current.values()):
                worker.process.kill()
        for _ in self.threads:
            self.batches.put(None)
        for thread in self.threads:
            if thread is not threading.current_thread() and (
                not self.time_limit or thread is not self.threads[-1]
            ):
                thread.join()
        self.closing.set()


def parse_in_workers(
    items: Iterable[Task | Ready],
    workers: int,
    time_limit: float | int | None,
    memory_limit: int,
    merge_within: float | int | None,
) -> Iterator[tuple[str, str, Crystal | ReadError]]:
    """Source, name and result of every item, in the order of the items.

    At most a few batches per worker are in memory at a time. A worker is started when the first text has to
    be parsed.
    """
    pool: _Pool | None = None
    waiting: deque[int | list[tuple[str, str, Crystal | ReadError]]] = (
        deque()
    )  # batch numbers and ready results
    finished: dict[int, list[Results] | BaseException] = {}
    sources: dict[int, list[Task]] = {}
    batch: list[Task] = []
    size = number = 0
    iterator = iter(items)
    exhausted = clean = False
    try:
        while not (exhausted and not waiting and not batch):
            # fill up
            item = None if exhausted else next(iterator, None)
            exhausted = exhausted or item is None
            if isinstance(item, Task):
                batch.append(item)
                size += len(item.data) if item.data is not None else 4096
            full = len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES or (number == 0 and len(batch) >= 4)
            if batch and (full or exhausted or isinstance(item, Ready)):
                if pool is None:
                    pool = _Pool(workers, time_limit, memory_limit, merge_within)
                sources[number] = batch
                waiting.append(number)
                pool.batches.put((number, batch))
                batch, size, number = [], 0, number + 1
            if isinstance(item, Ready):
                if waiting and isinstance(waiting[-1], list):
                    waiting[-1].append((item.source, item.name, item.result))
                else:
                    waiting.append([(item.source, item.name, item.result)])
            # hand out what is next in order; wait for it only when enough is under way
            while waiting:
                head = waiting[0]
                if isinstance(head, list):
                    waiting.popleft()
                    yield from head
                    continue
                while head not in finished:
                    outstanding = len(sources) - len(finished)
                    block = exhausted or outstanding > 2 * workers or len(sources) > 4 * workers + 4
                    assert pool is not None
                    try:
                        done, results = pool.answers.get(block=block)
                    except queue.Empty:
                        break
                    finished[done] = results
                if head not in finished:
                    break
                results = finished.pop(head)
                tasks = sources.pop(head)
                waiting.popleft()
                if isinstance(results, BaseException):
                    raise results
                for task, found in zip(tasks, results, strict=True):
                    for name, result in found:
                        yield task.source, name, result
        clean = True
    finally:
        if pool is not None:
            pool.close(clean)
