"""What a process of the pool does.

It makes once what its jobs run on (`start(index, report)`), then runs one job after the other on it
(`job.run(embedder)`). A job is anything that can be pickled and has such a method; what is left of it when the process
could take the next, such as writing, may go on beside that.
"""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

from esmflow.errors import DeviceLostError

Report = Callable[[Any], None]
Start = Callable[[int, Report], Any]


class Job(Protocol):
    """What a pool runs."""

    def run(self, embedder: Any) -> Any:
        """Do it, in a process of the pool; what it returns or raises reaches the job's future.

        If it returns a future, the process goes on with its next job, and the outcome of that future is the job's.
        """


class _LogToParent(logging.Handler):
    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send("log", (record.levelno, "%s", record.getMessage()))


def serve(connection: Connection, start: Start, index: int) -> None:
    """What a process of the pool does."""
    # A signal to the whole group is the parent's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sending = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with sending:
            connection.send((kind, content))

    logging.basicConfig(level=logging.INFO, handlers=[_LogToParent(send)])
    # What is imported to start stays: to look through it for garbage again and again takes a fifth of the time.
    gc.disable()
    try:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        embedder = start(index, partial(send, "report"))
    except Exception as error:
        send("failed", _portable(error))
        return
    gc.freeze()
    gc.enable()
    send("ready", None)
    while (given := connection.recv()) is not None:
        number, job = given
        _run(number, job, embedder, send)
        send("ready", None)
    # What ends with the process need not be looked through for garbage first: after torch that takes 0.3 s.
    gc.freeze()


def _run(number: int, job: Job, embedder: Any, send: Callable[[str, Any], None]) -> None:
    try:
        result = job.run(embedder)
    except Exception as error:
        _tell(send, number, error)
    else:
        if isinstance(result, Future):
            result.add_done_callback(partial(_answer, send, number))
        else:
            send("result", (number, result))


def _answer(send: Callable[[str, Any], None], number: int, future: Future[Any]) -> None:
    if error := future.exception():
        _tell(send, number, error)
    else:
        send("result", (number, future.result()))


def _tell(send: Callable[[str, Any], None], number: int, error: BaseException) -> None:
    """Send what a job raised; end the process where nothing more can be done on its device."""
    if isinstance(error, DeviceLostError):
        logging.warning("%s", error)
        os._exit(os.EX_UNAVAILABLE)
    logging.debug("a job failed", exc_info=error)
    send("error", (number, _portable(error)))


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
