"""What was tried, and what came of it."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from commands import Run, Step, Whole

#: What should not have been.
FAULTS = ("lost", "doubled", "wrong", "silent", "tracebacks", "left")
#: Seconds between two lines of progress.
_INTERVAL = 15.0


class Figures:
    """Counts, and a line for each thing that should not have been."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys(FAULTS, 0))

    @property
    def faults(self) -> int:
        """How often what should not have been was."""
        return sum(self.counts[name] for name in FAULTS)

    def add(self, name: str, about: str = "") -> None:
        """Count one, and tell of it."""
        self.counts[name] += 1
        if about:
            _say(f"{name}: {about}")

    def tries(self, name: str, count: int) -> Iterator[int]:
        """The numbers of so many tries, which are counted, and how far they are is told."""
        begin = told = time.monotonic()
        for number in range(count):
            yield number
            self.counts[name] += 1
            if (now := time.monotonic()) - told >= _INTERVAL or number + 1 == count:
                told = now
                rate = (number + 1) / (now - begin)
                left = (count - number - 1) / rate
                _say(f"{number + 1} of {count} {name}, {60 * rate:.0f} a minute, {left / 60:.0f} minutes left")


def go_on(figures: Figures, whole: Whole, run: Run, step: Step, about: str) -> None:
    """Run a command again after what befell it, and compare all that is there with the run that went well."""
    outcome = run.do(step)
    if outcome.code:
        figures.add("lost", f"{about}: ends with {outcome.code} afterwards: {outcome.errors[-600:]}")
        return
    names = list(whole.made)
    paths = whole.inputs.union(*(whole.made[name] for name in names[: names.index(step.name) + 1]))
    compare(figures, whole, run, paths, about)
    if more := run.files() - paths:
        figures.add("left", f"{about}: {sorted(map(str, more))[:4]}")


def compare(figures: Figures, whole: Whole, run: Run, paths: set[Path], about: str) -> None:
    """Tell of what is not as in the run that went well, and of hidden files."""
    there = run.files() & whole.contents.keys()
    if missing := paths - there:
        figures.add("lost", f"{about}: {sorted(map(str, missing))[:4]} are missing")
    found = run.contents(there)
    if wrong := sorted(str(path) for path in there if found[path] != whole.contents[path]):
        figures.add("wrong", f"{about}: {wrong[:4]}")
    if left := run.hidden():
        figures.add("left", f"{about}: {[str(path.relative_to(run.root)) for path in left[:3]]}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
