"""A pool of long-lived processes that work through one queue of jobs.

Each process makes its server once (`start(index, report)`), then runs one job after the other on it
(`job.run(server)`). A job is anything that can be pickled and has such a method; what is left of it when the server
could take the next, such as writing, may go on beside that. One thread of the parent hands out jobs and takes results;
nothing is shared between the processes.
"""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Protocol

from esmflow.errors import DeviceError, DeviceLostError, IncompleteError

#: A process that dies so often without having finished starting is not replaced.
_STARTS = 5

log = logging.getLogger(__name__)

Report = Callable[[Any], None]
Start = Callable[[int, Report], Any]


class Job(Protocol):
    """What a pool runs."""

    def run(self, server: Any) -> Any:
        """Do it, in a process of the pool; what it returns or raises reaches the job's future.

        If it returns a future, the process goes on with its next job, and the outcome of that future is the job's.
        """


class ProcessDiedError(DeviceError):
    """A job's process died, as often as the pool was patient."""


class PoolClosedError(IncompleteError):
    """The pool takes no more jobs, or was closed before this one was done."""


@dataclass(eq=False)
class _Item:
    job: Job
    future: Future[Any] = field(default_factory=Future)
    deaths: int = 0


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
        """A job at which a process has died is alone in its next one: should that die, too, it is the job's doing."""
        return self.ready and (not self.items or not any(other.deaths for other in (item, *self.items.values())))


class WorkerPool:
    """Processes that live from creation to `close`.

    start: called in each process as start(index, report), with the number of the process from 0 and a function whose
    argument reaches `on_report(argument)` in the parent; it gives the server that jobs run on.
    bound: the most jobs that wait; `submit` blocks beyond. patience: a job whose process dies goes back to the head
    of the queue; at its so-many-th death its future has ProcessDiedError. Processes that die are replaced.
    """

    def __init__(
        self,
        start: Start,
        processes: int = 1,
        *,
        bound: int = 1024,
        patience: int = 3,
        on_report: Report | None = None,
        context: SpawnContext | None = None,
    ) -> None:
        self._start, self._bound, self._patience, self._on_report = start, bound, patience, on_report
        self._context = context or multiprocessing.get_context("spawn")
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._unfinished = 0
        self._closing = False
        self._broken: BaseException | None = None
        self._deadline = float("inf")
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
        self.close(0)

    @property
    def processes(self) -> list[int]:
        """The process numbers of the system, in the order of the pool's own."""
        with self._changed:
            return [slot.process.pid or 0 for slot in self._slots]

    @property
    def waiting(self) -> int:
        """Jobs that no process has begun."""
        with self._changed:
            return len(self._queue)

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job. Raises PoolClosedError once the pool is closing."""
        item = _Item(job)
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._queue) < self._bound)
            if self._closing:
                raise self._broken or PoolClosedError("the pool is closing and takes no more jobs; run again")
            self._queue.append(item)
            self._unfinished += 1
        self._wake.send_bytes(b"+")
        return item.future

    def drain(self, timeout: float | None = None) -> bool:
        """Wait, for so many seconds at most, until nothing is left to do; returns whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._unfinished, timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Take no more jobs, drop those that wait, give the running ones `timeout` seconds, end the processes.

        Futures of what was dropped have PoolClosedError.
        """
        with self._changed:
            self._closing = True
            self._deadline = min(self._deadline, time.monotonic() + timeout)
            self._changed.notify_all()
        if self._thread.is_alive():
            self._wake.send_bytes(b".")
            self._thread.join()

    def _spawn(self, index: int) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._start, index), name=f"worker-{index}")
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                for item in self._take_waiting() if self._closing else []:
                    self._settle(item, error=PoolClosedError("not begun when the pool was closed; run again"))
                running = [slot for slot in self._slots if slot.items]
                if self._closing and (not running or time.monotonic() >= self._deadline):
                    break
                for slot in self._slots:
                    if self._queue and slot.takes(self._queue[0]):
                        self._hand_out(slot)
                remaining = max(self._deadline - time.monotonic(), 0) if self._closing else None
            events = wait(
                [
                    self._woken,
                    *(slot.connection for slot in self._slots),
                    *(slot.process.sentinel for slot in self._slots),
                ],
                remaining,
            )
            if self._woken in events:
                self._woken.recv_bytes()
            for slot in list(self._slots):
                if slot.connection in events or slot.process.sentinel in events:
                    self._attend(slot)
        self._end()

    def _take_waiting(self) -> list[_Item]:
        items = list(self._queue)
        self._queue.clear()
        return items

    def _hand_out(self, slot: _Slot) -> None:
        item = self._queue.popleft()
        self._changed.notify_all()
        if not item.future.running() and not item.future.set_running_or_notify_cancel():
            self._unfinished -= 1
            return
        number = next(self._numbers)
        try:
            slot.connection.send((number, item.job))
        except OSError:
            pass  # The process is dead, which its sentinel tells.
        except Exception as error:
            self._settle(item, error=error)
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
            with self._changed:
                self._settle(slot.items.pop(number), **{kind: outcome})

    def _settle(self, item: _Item, result: Any = None, error: BaseException | None = None) -> None:
        self._unfinished -= 1
        if not item.future.done():
            if error is not None:
                item.future.set_exception(error)
            else:
                item.future.set_result(result)
        self._changed.notify_all()

    def _bury(self, slot: _Slot) -> None:
        slot.process.kill()
        slot.process.join()
        slot.connection.close()
        code = slot.process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        items, slot.items = list(slot.items.values()), {}
        slot.failed_starts += not slot.started
        slot.started = slot.ready = False
        with self._changed:
            for item in reversed(items):
                item.deaths += 1
                log.warning("process %d died of %s (death %d of its job)", slot.process.pid, cause, item.deaths)
                if item.deaths < self._patience:
                    self._queue.appendleft(item)
                else:
                    died = ProcessDiedError(f"the process died of {cause}, {item.deaths} times; see the log")
                    self._settle(item, error=died)
            if self._closing:
                self._slots.remove(slot)
                return
        replacement = None
        if slot.failed_starts < _STARTS:
            try:
                replacement = self._spawn(slot.index)
            except OSError as error:
                log.warning("process %d cannot be replaced: %s", slot.process.pid, error)
        with self._changed:
            if replacement:
                self.restarts += 1
                slot.process, slot.connection = replacement
                return
            self._slots.remove(slot)
            if not self._slots:
                self._closing = True
                self._broken = self._broken or ProcessDiedError(f"no process is left, the last died of {cause}")
                for item in self._take_waiting():
                    self._settle(item, error=self._broken)

    def _end(self) -> None:
        """End the processes, those that work by force."""
        for slot in self._slots:
            if slot.items:
                slot.process.kill()
                with self._changed:
                    for item in slot.items.values():
                        self._settle(item, error=PoolClosedError("not done when the pool was closed; run again"))
            else:
                try:
                    slot.connection.send(None)
                except OSError:
                    slot.process.kill()
        deadline = max(self._deadline, time.monotonic()) + 2
        for slot in self._slots:
            slot.process.join(max(deadline - time.monotonic(), 0.1))
            slot.process.kill()
            slot.process.join()
            slot.connection.close()


class _LogToParent(logging.Handler):
    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send("log", (record.levelno, "%s", record.getMessage()))


def _serve(connection: Connection, start: Start, index: int) -> None:
    """What a process of the pool does."""
    # A signal to the whole group is the parent's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sending = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with sending:
            connection.send((kind, content))

    logging.basicConfig(level=logging.INFO, handlers=[_LogToParent(send)])
    # What is imported to start stays: to look through it for garbage again and again takes a fifth of the time.
    gc.disable()
    try:
        server = start(index, lambda argument: send("report", argument))
    except Exception as error:
        send("failed", _portable(error))
        return
    gc.freeze()
    gc.enable()
    send("ready", None)
    while (given := connection.recv()) is not None:
        number, job = given
        try:
            result = job.run(server)
        except DeviceLostError as error:
            # Nothing more can be done on the device in this process.
            logging.warning("%s", error)
            os._exit(os.EX_UNAVAILABLE)
        except Exception as error:
            logging.debug("a job failed", exc_info=error)
            send("error", (number, _portable(error)))
        else:
            if isinstance(result, Future):
                result.add_done_callback(partial(_answer, send, number))
            else:
                send("result", (number, result))
        send("ready", None)
    # What ends with the process need not be looked through for garbage first: after torch that takes 0.3 s.
    gc.freeze()


def _answer(send: Callable[[str, Any], None], number: int, future: Future[Any]) -> None:
    if error := future.exception():
        send("error", (number, _portable(error)))
    else:
        send("result", (number, future.result()))


def _portable(error: BaseException) -> BaseException:
    """The error, or one of its text if it does not survive being pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(os.EX_TEMPFAIL)
