"""The parts of a job's shards: which comes next, and what becomes of one whose process died.

What a process had in hand when it died goes back to the head of the queue, and each part of it is to be alone in its
next process: should that die, too, it is this part's doing. At its third death a part is divided, and so on by halves,
which are committed as hidden files and become the shard's file once both are there. A single sequence is skipped.
"""

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from esmflow.job import Shard
from esmflow.shortage import PROCESS_DIED
from esmflow.store.store import Store, commit, merge
from esmflow.worker.messages import EmbedShard
from esmflow.worker.pool import ProcessDiedError

#: The deaths at which a part is given up as it is.
_DEATHS = 3

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Part:
    """Rows of a shard that go through a process together: all of them, or fewer if those kill it."""

    task: EmbedShard
    whole: "Part | None" = None
    """What it is a half of."""
    deaths: int = 0
    committed: bool = False
    halves: "tuple[Part, ...]" = ()


class Parts:
    """Those that no process has in hand, in the order in which they are to be done."""

    def __init__(self, tasks: Iterable[EmbedShard], store: Store) -> None:
        self._queue = deque(Part(task) for task in tasks)
        self._store = store

    def __len__(self) -> int:
        return len(self._queue)

    def next(self, most: float) -> Part | None:
        """Take the first that costs so many FLOPs at most out of the queue; None if there is none."""
        part = next((part for part in self._queue if part.task.cost <= most), None)
        if part:
            self._queue.remove(part)
        return part

    def leave(self, model: str) -> None:
        """Drop those of a model."""
        self._queue = deque(part for part in self._queue if part.task.model.name != model)

    def in_store(self, part: Part) -> bool:
        """Whether it is committed by now: by another run, or by a process that died before it could say so."""
        task = part.task
        return self._store.has(task.model.spaces_of(task.shard.treatment), task.target.stem)

    def committed(self, part: Part) -> Shard | None:
        """Take note that a part is committed; returns its shard if that is whole now."""
        part.committed = True
        whole = part.whole
        if whole is None:
            return part.task.shard
        if all(half.committed for half in whole.halves):
            merge(whole.task.target, [half.task.target for half in whole.halves])
            return self.committed(whole)
        return None

    def died(self, part: Part, error: ProcessDiedError) -> Shard | None:
        """Go on with what was in hand when its process died; returns its shard if that is whole, what kills skipped."""
        part.deaths += 1
        log.warning("process %d died of %s (death %d of its job)", error.pid, error.cause, part.deaths)
        if part.deaths < _DEATHS:
            self._queue.appendleft(part)
            return None
        task, name = part.task, part.task.shard.name
        cause = f"{PROCESS_DIED} of {error.cause}, {part.deaths} times; see the log"
        if task.stop - task.first > 1:
            log.warning("shard %s: sequences %d to %d go on by halves: %s", name, task.first, task.stop - 1, cause)
            self._divide(part)
            return None
        log.warning("shard %s: sequence %d is skipped: %s", name, task.first, cause)
        self._skip(task, cause)
        return self.committed(part)

    def _divide(self, part: Part) -> None:
        task, name, directory = part.task, part.task.shard.name, part.task.target.parent
        middle = (task.first + task.stop) // 2
        part.halves = tuple(
            Part(replace(task, first=first, stop=stop, target=directory / f".{name}.{first}-{stop}.parquet"), part)
            for first, stop in ((task.first, middle), (middle, task.stop))
        )
        self._queue.extendleft(reversed(part.halves))

    def _skip(self, task: EmbedShard, reason: str) -> None:
        shard, model = task.shard, task.model
        keys, _ = task.read()
        nothing = {output: [np.zeros(output.kind.shape(0, model.architecture), np.float32)] for output in shard.outputs}
        metadata = {"model": model.name, "weights_sha256": model.descriptor.sha256}
        commit(task.target, keys, [reason], nothing, metadata, model.spec.vectors)
