"""Calls to the system that fail: each kind of each command's, and all of that kind after it."""

import errno
import random
import shutil
from array import array
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from commands import Step, Whole
from judge import Figures, go_on

#: In the order of failing_calls.c, and what each can fail with.
_CREATING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_READING = (errno.EIO,)
KINDS = {
    "create": _CREATING,
    "open": _READING,
    "read": _READING,
    "write": _CREATING,
    "fsync": _CREATING,
    "truncate": _CREATING,
    "rename": _CREATING,
    "mkdir": _CREATING,
    "unlink": _READING,
    "list": _READING,
}
#: What a command may end with then: done in another way, cannot write, run again.
ANSWERS = {0, 73, 75}


def calls(figures: Figures, whole: Whole, work: Path, count: int, draw: random.Random) -> None:
    """Let calls fail; the command is to say so, to blame no file for it, and to end well when it is run again."""
    steps = draw.sample(whole.steps, len(whole.steps))
    counts: dict[str, dict[str, int]] = {}
    kinds: dict[str, Iterator[str]] = {}
    for number in figures.tries("calls", count):
        step = steps[number % len(steps)]
        if step.name not in counts:
            counts[step.name] = _count(whole, step, work / "counted")
            made = [kind for kind, calls_of_kind in counts[step.name].items() if calls_of_kind]
            kinds[step.name] = cycle(draw.sample(made, len(made)))
            figures.counts["kinds of calls"] += len(made)
        kind = next(kinds[step.name])
        which = draw.randint(1, counts[step.name][kind])
        let_fail(figures, whole, work / "failed", step, kind, which, draw.choice(KINDS[kind]))


def let_fail(figures: Figures, whole: Whole, target: Path, step: Step, kind: str, which: int, error: int) -> None:
    """Let one call of a command fail, and all of its kind after it."""
    run = whole.before(step, target)
    fault = f"{list(KINDS).index(kind)} {which} {error}"
    outcome = run.do(step, _variables(target) | {"FAULT": fault})
    about = f"{step.name}: {kind} {which} fails with {errno.errorcode[error]}"
    if outcome.traceback:
        figures.add("tracebacks", f"{about}: {outcome.errors[-1500:]}")
    elif outcome.code not in ANSWERS or (outcome.code and not outcome.told):
        figures.add("silent", f"{about}: ends with {outcome.code}: {outcome.errors[-300:]}")
    if (target / "store" / "quarantine").exists():
        figures.add("lost", f"{about}: a whole file is in quarantine")
    go_on(figures, whole, run, step, about)
    shutil.rmtree(target)


def _count(whole: Whole, step: Step, target: Path) -> dict[str, int]:
    """How many calls of each kind a command makes."""
    variables = _variables(target)
    whole.before(step, target).do(step, variables)
    shutil.rmtree(target)
    numbers = array("l", Path(variables["FAULT_COUNTS"]).read_bytes())
    return dict(zip(KINDS, numbers, strict=True))


def _variables(target: Path) -> dict[str, str]:
    """What tells the library which calls to count, and where."""
    counts = Path(f"{target}.counts")
    counts.write_bytes(bytes(len(KINDS) * array("l").itemsize))
    return {"FAULT_BELOW": str(target), "FAULT_COUNTS": str(counts)}
