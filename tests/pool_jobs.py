"""Jobs for the pool's tests. A process of the pool imports this and little else, so it starts at once."""

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esmflow.errors import DeviceError
from esmflow.worker.serving import Report


@dataclass
class Bench:
    """What the jobs of these tests run on."""

    index: int
    report: Report


@dataclass
class Square:
    number: int

    def run(self, embedder: Bench) -> int:
        embedder.report(self.number)
        return self.number**2


@dataclass
class Fail:
    error: Exception

    def run(self, embedder: Bench) -> None:
        raise self.error


class UnportableError(Exception):
    """Does not survive being pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@dataclass
class FailUnportably:
    def run(self, embedder: Bench) -> None:
        raise UnportableError("of", "two parts")


@dataclass
class WhoAmI:
    def run(self, embedder: Bench) -> tuple[int, int]:
        return embedder.index, os.getpid()


@dataclass
class WaitFor:
    """Begin, say so by an x in a file, and end when another file is there."""

    place: Path

    def run(self, embedder: Bench) -> Any:
        self.begin()
        return self.end()

    def begin(self) -> None:
        with self.place.with_suffix(".begun").open("a") as file:
            file.write("x")

    def end(self) -> str:
        while not self.place.exists():
            time.sleep(0.005)
        return "done"


@dataclass
class FinishLater(WaitFor):
    """The same, but the process is free once it has begun; it may also end with an error."""

    error: Exception | None = None

    def run(self, embedder: Bench) -> Future[str]:
        self.begin()
        return ThreadPoolExecutor(1).submit(self.end)

    def end(self) -> str:
        result = super().end()
        if self.error:
            raise self.error
        return result


@dataclass
class DieUntil:
    """Kill the own process until so many tries have been made."""

    place: Path
    tries: int

    def run(self, embedder: Bench) -> int:
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
