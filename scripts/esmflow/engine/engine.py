"""The engine: sequences in, representations out, through packs of a fixed token budget.

engine = Engine(Esm(weights.read([path]), torch.device("cuda")))
ticket = engine.submit([b"MKTAYIAKQR", b"MKV"], [Output(33, "mean")])
for ticket, embedded in engine.drain():
    vectors = embedded.values[Output(33, "mean")]
engine.close()
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch

from esmflow.engine.device import is_lost
from esmflow.engine.figures import Figures
from esmflow.engine.packing import CPU_TOKENS, plan_packs
from esmflow.engine.task import Embedded, Task
from esmflow.errors import DeviceLostError
from esmflow.model.pack import Pack
from esmflow.model.pooling import Represented, Results, represent
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.shortage import OUT_OF_MEMORY
from esmflow.treatment import WHOLE, Treatment

#: Packs that are prepared, computed or copied at the same time on a GPU.
_AHEAD = 4
#: How PyTorch's allocator and oneDNN say on a CPU that memory is short.
_NO_MEMORY = ("can't allocate memory", "could not create a primitive")


class _Running(NamedTuple):
    """A pack in hand."""

    task: Task
    members: np.ndarray
    result: Future[Results]
    alone: bool
    """Whether nothing else is in hand until it is done."""


class Engine:
    """Embeds sequences with one model; not to be shared between threads.

    A thread makes packs ahead of the device, another takes results from it. On a CPU, `threads` packs are computed side
    by side, each by one thread: packs need no synchronisation, so this keeps every core busier than sharing each
    operation among the cores would. On a GPU, results are copied back while the next pack is computed.

    `exact` gives the same model in float32, for what is not finite in 16 bit; it is called when it is first needed.
    With `apart`, each sequence goes through the model alone, those of a pack side by side, layer by layer.
    """

    def __init__(
        self,
        model: Esm,
        *,
        tokens_per_pack: int = CPU_TOKENS,
        threads: int = 1,
        exact: Callable[[], Esm] | None = None,
        apart: bool = False,
    ) -> None:
        on_gpu = model.device.type == "cuda"
        self.model = model
        self.tokens_per_pack = self._full_tokens_per_pack = tokens_per_pack
        self.threads = threads
        self.figures = Figures()
        self._exact, self._exact_model = exact, None if exact else model
        self._apart = apart
        self._loader = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(model.device) if on_gpu else None  # type: ignore[no-untyped-call]
        # Packs differ in time: a thread that is done with one should find the next.
        self._ahead = _AHEAD if on_gpu else 2 * threads
        self._alone_next = 0
        """How many of the packs that wait are to be computed with nothing beside them."""
        self._compute = ThreadPoolExecutor(1 if on_gpu else threads, initializer=torch.set_num_threads, initargs=(1,))
        self._collect = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Task, np.ndarray]] = deque()
        self._running: deque[_Running] = deque()
        self._tickets = 0

    def submit(
        self,
        sequences: Sequence[bytes],
        outputs: Sequence[Output],
        treatment: Treatment = WHOLE,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> int:
        """Take sequences (upper-case residue letters, at least one each) to be embedded; returns their ticket.

        `progress` is called for each finished pack with its sequences, residues and FLOPs.
        """
        self._tickets += 1
        # What took the memory may be gone by now.
        self.tokens_per_pack = min(2 * self.tokens_per_pack, self._full_tokens_per_pack)
        task = Task(self._tickets, sequences, outputs, progress, treatment, self.model.architecture)
        packs = plan_packs(task.tokens, self.tokens_per_pack)
        self._waiting += [(task, members) for members in packs]
        used = [int(task.tokens[members].sum()) for members in packs]
        capacity = [max(self.tokens_per_pack, tokens_used) for tokens_used in used]
        self.figures.packs += len(packs)
        self.figures.pack_capacity += sum(capacity)
        self.figures.last_pack_free += max((c - u for c, u in zip(capacity, used, strict=True)), default=0)
        return task.ticket

    def begin(self) -> Future[Results] | None:
        """Begin packs, as many as have room; returns what the next step waits for, None if nothing is in hand."""
        while self._waiting and self._has_room():
            self._launch(*self._waiting.popleft())
        return self._running[0].result if self._running else None

    def step(self) -> list[tuple[int, Embedded]]:
        """Go on by one pack; returns what is finished with it, as (ticket, result), in the order of submission.

        A pack for which memory does not suffice is tried again with nothing beside it. If that fails, too, it is split,
        and later packs are made smaller; a single sequence gets a reason. So does one that is not finite even alone and
        in float32. Raises DeviceLostError if the device is lost.
        """
        self.begin()
        if not self._running:
            return []
        task, members, result, alone = self._running.popleft()
        results = self._outcome(result)
        # What an exception in the future holds is to be free before a failed pack is tried again.
        del result
        if results is not None:
            self._take(task, members, results)
        elif not alone:
            self._try_again(task, [members])
        elif len(members) > 1:
            self._split(task, members)
        else:
            self._give_up(task, members[0])
            self._finish(task, members)
        return [] if task.left else [(task.ticket, task.embedded())]

    def drain(self) -> Iterator[tuple[int, Embedded]]:
        """Step until nothing is left."""
        while self._waiting or self._running:
            yield from self.step()

    def embed(self, sequences: Sequence[bytes], outputs: Sequence[Output], treatment: Treatment = WHOLE) -> Embedded:
        """Submit and drain, for an engine that has nothing else in hand."""
        self.submit(sequences, outputs, treatment)
        [(_, embedded)] = self.drain()
        return embedded

    def exact(self) -> Esm:
        """The model in float32."""
        if self._exact_model is None and self._exact is not None:
            self._exact_model = self._exact()
        return self._exact_model or self.model

    @property
    def waiting(self) -> int:
        """How many packs have not been begun."""
        return len(self._waiting)

    def cancel(self) -> None:
        """Drop what is not finished."""
        self._waiting.clear()
        wait([running.result for running in self._running])
        self._running.clear()
        self._alone_next = 0

    def close(self) -> None:
        """End threads; what is not finished is dropped."""
        self._waiting.clear()
        for threads in (self._collect, self._compute, self._loader):
            threads.shutdown(cancel_futures=True)

    def _has_room(self) -> bool:
        """Whether another pack may be begun."""
        if not self._running:
            return True
        return not self._alone_next and not self._running[-1].alone and len(self._running) < self._ahead

    def _launch(self, task: Task, members: np.ndarray) -> None:
        tokens = task.tokens[members]
        if tokens.sum() > self.tokens_per_pack and len(members) > 1:
            packs = [members[chosen] for chosen in plan_packs(tokens, self.tokens_per_pack)]
            self._waiting.extendleft((task, pack) for pack in reversed(packs[1:]))
            members = packs[0]
        loaded = self._loader.submit(self._packs, task, members)
        result = self._collected(self._compute.submit(self._represent, loaded, task.computed))
        self._running.append(_Running(task, members, result, alone=self._alone_next > 0))
        self._alone_next = max(self._alone_next - 1, 0)

    def _packs(self, task: Task, members: np.ndarray) -> list[Pack]:
        return [task.pack(members[[place]]) for place in range(len(members))] if self._apart else [task.pack(members)]

    def _represent(self, loaded: Future[list[Pack]], outputs: Sequence[Output]) -> Represented:
        start = time.monotonic()
        packs = loaded.result()
        self.figures.waiting_seconds += time.monotonic() - start
        return represent(self.model, packs, outputs, self._stream)

    def _collected(self, represented: Future[Represented]) -> Future[Results]:
        """Done when what a device gave is on the host."""
        return self._collect.submit(lambda: represented.result().get())

    def _outcome(self, future: Future[Results]) -> Results | None:
        """Packs' results; None if memory did not suffice, for which PyTorch has no exception of its own on a CPU."""
        try:
            return future.result()
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as error:
            if any(text in str(error) for text in _NO_MEMORY):
                return None
            if is_lost(self.model.device, error):
                reason = str(error).strip().partition("\n")[0]
                raise DeviceLostError(
                    f"{self.model.device}: lost ({reason}); run again, on another device if it recurs"
                ) from error
            raise

    def _try_again(self, task: Task, packs: Sequence[np.ndarray]) -> None:
        """Put these first, each to be computed with nothing beside it."""
        self._alone_next += len(packs)
        self._waiting.extendleft((task, members) for members in reversed(packs))
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _split(self, task: Task, members: np.ndarray) -> None:
        """Go on with halves of a pack; one that was larger than half the budget tells that the budget is too large."""
        self.figures.splits += 1
        tokens = task.tokens[members]
        half = max(int(tokens.sum()) // 2, 1)
        if 2 * tokens.sum() > self.tokens_per_pack:
            self.tokens_per_pack = half
        self._try_again(task, [members[chosen] for chosen in plan_packs(tokens, half)])

    def _give_up(self, task: Task, member: int) -> None:
        task.reasons[task.rows[member]] = f"{OUT_OF_MEMORY}: {task.tokens[member] - 2} residues in one pass"

    def _take(self, task: Task, members: np.ndarray, results: Results) -> None:
        task.take(members, results.values)
        if not results.finite.all():
            self._compute_exactly(task, members[~results.finite])
        self._finish(task, members)

    def _compute_exactly(self, task: Task, members: np.ndarray) -> None:
        """Compute pieces alone in float32, with nothing beside them; what is not finite even so gets a reason."""
        wait([running.result for running in self._running])
        packs = [task.pack(members[[place]]) for place in range(len(members))]
        future = self._collected(self._compute.submit(represent, self.exact(), packs, task.computed))
        results = self._outcome(future)
        del future
        if results is None and len(members) > 1:
            for half in np.array_split(members, 2):
                self._compute_exactly(task, half)
        elif results is None:
            self._give_up(task, members[0])
        else:
            task.take(members, results.values)
            for row in task.rows[members[~results.finite]]:
                task.reasons[row] = "non-finite representation"

    def _finish(self, task: Task, members: np.ndarray) -> None:
        start, _, first, last = task.bounds[members].T
        tokens = task.tokens[members]
        sequences, residues = int((start == 0).sum()), int((last - first).sum())
        task.left -= len(members)
        self.figures.sequences += sequences
        self.figures.residues += residues
        self.figures.tokens += int(tokens.sum())
        if task.progress:
            depth = max(output.layer for output in task.outputs)
            task.progress(sequences, residues, float(self.model.architecture.flops(tokens, depth).sum()))
