"""Jobs for the pool's tests. A process of the pool imports this and little else, so it starts at once."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from esmflow.errors import DeviceError
from esmflow.pool import Report


@dataclass
class Bench:
    """The server of these tests."""

    index: int
    report: Report


@dataclass
class Square:
    number: int

    def run(self, server: Bench) -> int:
        server.report(self.number)
        return self.number**2


@dataclass
class Fail:
    error: Exception

    def run(self, server: Bench) -> None:
        raise self.error


class UnportableError(Exception):
    """Does not survive being pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@dataclass
class FailUnportably:
    def run(self, server: Bench) -> None:
        raise UnportableError("of", "two parts")


@dataclass
class WhoAmI:
    def run(self, server: Bench) -> tuple[int, int]:
        return server.index, os.getpid()


@dataclass
class WaitFor:
    """Begin, say so by a file, and end when another file is there."""

    place: Path

    def run(self, server: Bench) -> str:
        self.place.with_suffix(".begun").touch()
        while not self.place.exists():
            time.sleep(0.005)
        return "done"


@dataclass
class FinishLater:
    """Note the start in a file and leave the process free; go wrong or end when another file is there."""

    place: Path
    error: Exception | None = None

    def run(self, server: Bench) -> Future[str]:
        future: Future[str] = Future()
        with self.place.with_suffix(".begun").open("a") as file:
            file.write("x")

        def finish() -> None:
            while not self.place.exists():
                time.sleep(0.005)
            if self.error:
                future.set_exception(self.error)
            else:
                future.set_result("done")

        threading.Thread(target=finish, daemon=True).start()
        return future


@dataclass
class DieUntil:
    """Kill the own process until so many tries have been made."""

    place: Path
    tries: int

    def run(self, server: Bench) -> int:
        with self.place.open("a") as file:
            file.write("x")
        if len(self.place.read_text()) < self.tries:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(self.place.read_text())


def no_device(index: int, report: Report) -> Bench:
    raise DeviceError(f"no device for process {index}")


def dies_at_start(index: int, report: Report) -> Bench:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
