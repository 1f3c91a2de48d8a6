"""A pool of long-lived processes that work through one queue of jobs.

One thread of the parent hands out jobs and takes results; nothing is shared between the processes. What they do is in
`serving.py`.
"""

import logging
import multiprocessing
import pickle
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from esmflow.errors import DeviceError, IncompleteError
from esmflow.worker.serving import Job, Report, Start, serve

#: A process that dies so often without having finished starting is not replaced.
_STARTS = 5
#: Seconds that an idle process has to end by itself.
_LEAVE = 2.0

log = logging.getLogger(__name__)


class ProcessDiedError(DeviceError):
    """The process that had a job in hand died."""

    def __init__(self, pid: int, cause: str) -> None:
        super().__init__(f"process {pid} died of {cause}")
        self.pid, self.cause = pid, cause


class NoProcessError(DeviceError):
    """All processes died, and none can be started in their place."""


class PoolClosedError(IncompleteError):
    """The pool takes no more jobs, or was closed before this one was done."""


@dataclass(eq=False)
class _Item:
    job: Job
    alone: bool
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class _Slot:
    """The place of one process, whichever holds it at the moment."""

    index: int
    process: SpawnProcess
    connection: Connection
    items: dict[int, _Item] = field(default_factory=dict)
    """What it has been given and not answered, by number."""
    started: bool = False
    ready: bool = False
    """For the next job."""
    failed_starts: int = 0

    def takes(self, item: _Item) -> bool:
        """Whether it could begin a job now, without company for one that is to be alone."""
        return self.ready and not (self.items and any(other.alone for other in (item, *self.items.values())))


class WorkerPool:
    """Processes that live from creation to `close`; those that die are replaced.

    start: called in each process as start(index, report), with the number of the process from 0 and a function whose
    argument reaches `on_report(argument)` in the parent; it gives what jobs run on.
    """

    def __init__(self, start: Start, processes: int = 1, *, on_report: Report | None = None) -> None:
        self._start, self._on_report = start, on_report
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        """For what `submit` and `close` share with the pool's thread: the queue, the slots and how it ends."""
        self._queue: deque[_Item] = deque()
        self._closing = False
        self._broken: BaseException | None = None
        self._slots: list[_Slot] = []
        self._numbers = count()
        self.restarts = 0
        self._woken, self._wake = multiprocessing.Pipe(duplex=False)
        for index in range(processes):
            try:
                self._slots.append(_Slot(index, *self._spawn(index)))
            except OSError as error:
                if not self._slots:
                    raise DeviceError(f"no process can be started ({error}); free some processes or memory") from error
                log.warning("working with %d of %d processes: %s", len(self._slots), processes, error)
                break
        self._thread = threading.Thread(target=self._dispatch, name="pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """The process numbers of the system, in the order of the pool's own."""
        with self._lock:
            return [slot.process.pid or 0 for slot in self._slots]

    def submit(self, job: Job, *, alone: bool = False) -> Future[Any]:
        """Queue a job, which may be one to have a process to itself until it is done.

        Its future has what the job returns or raises, ProcessDiedError if its process dies, PoolClosedError if the
        pool is closed before it is done. Raises PoolClosedError, or the reason, if no process is left for it.
        """
        item = _Item(job, alone)
        with self._lock:
            if self._closing:
                raise self._broken or PoolClosedError("the pool is closed and takes no more jobs; run again")
            self._queue.append(item)
        self._wake.send_bytes(b"+")
        return item.future

    def close(self) -> None:
        """Take no more jobs, drop those that are not done, and end the processes."""
        with self._lock:
            self._closing = True
        if self._thread.is_alive():
            self._wake.send_bytes(b".")
            self._thread.join()

    def _spawn(self, index: int) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs, self._start, index), name=f"worker-{index}")
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    def _dispatch(self) -> None:
        while not self._closing:
            for slot in self._slots:
                self._hand_out(slot)
            connections = [slot.connection for slot in self._slots]
            events = wait([self._woken, *connections, *(slot.process.sentinel for slot in self._slots)])
            if self._woken in events:
                self._woken.recv_bytes()
            for slot in list(self._slots):
                if slot.connection in events or slot.process.sentinel in events:
                    self._attend(slot)
        self._end()

    def _hand_out(self, slot: _Slot) -> None:
        """Give a process the job at the head of the queue, if it can take that now."""
        with self._lock:
            if not self._queue or not slot.takes(self._queue[0]):
                return
            item = self._queue.popleft()
        number = next(self._numbers)
        try:
            slot.connection.send((number, item.job))
        except OSError:
            pass  # The process is dead, which its sentinel tells.
        except Exception as error:
            item.future.set_exception(error)
            return
        slot.items[number] = item
        slot.ready = False

    def _attend(self, slot: _Slot) -> None:
        """Take what a process has sent; replace it if it is dead."""
        alive = slot.process.is_alive()
        try:
            while slot.connection.poll():
                self._message(slot, *slot.connection.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            alive = False
        if not alive:
            self._bury(slot)

    def _message(self, slot: _Slot, kind: str, content: Any) -> None:
        if kind == "log":
            log.log(*content)
        elif kind == "report":
            if self._on_report:
                self._on_report(content)
        elif kind == "ready":
            slot.started, slot.ready, slot.failed_starts = True, True, 0
        elif kind == "failed":
            # Another process in its place would fail likewise.
            slot.failed_starts, self._broken = _STARTS, content
        else:
            number, outcome = content
            future = slot.items.pop(number).future
            if kind == "error":
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _bury(self, slot: _Slot) -> None:
        """Put another process in the place of a dead one, and tell the jobs that it held."""
        slot.process.kill()
        slot.process.join()
        slot.connection.close()
        pid, code = slot.process.pid or 0, slot.process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        items, slot.items = list(slot.items.values()), {}
        slot.failed_starts += not slot.started
        slot.started = slot.ready = False
        replacement = None
        if slot.failed_starts < _STARTS and not self._closing:
            try:
                replacement = self._spawn(slot.index)
            except OSError as error:
                log.warning("process %d cannot be replaced: %s", pid, error)
        with self._lock:
            if replacement:
                self.restarts += 1
                slot.process, slot.connection = replacement
            else:
                self._slots.remove(slot)
            if not self._slots and not self._closing:
                self._closing = True
                self._broken = self._broken or NoProcessError(f"no process is left, the last died of {cause}")
        for item in items:
            item.future.set_exception(ProcessDiedError(pid, cause))

    def _end(self) -> None:
        """End the processes, those that work by force, and tell the jobs that are not done."""
        closed = self._broken or PoolClosedError("not done when the pool was closed; run again")
        for item in self._queue:
            item.future.set_exception(closed)
        for slot in self._slots:
            if slot.items:
                slot.process.kill()
                for item in slot.items.values():
                    item.future.set_exception(closed)
            else:
                try:
                    slot.connection.send(None)
                except OSError:
                    slot.process.kill()
        deadline = time.monotonic() + _LEAVE
        for slot in self._slots:
            slot.process.join(max(deadline - time.monotonic(), 0.1))
            slot.process.kill()
            slot.process.join()
            slot.connection.close()
