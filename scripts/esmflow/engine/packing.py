"""Planning of packs, and preparing them ahead of the device in processes of their own."""

import multiprocessing
import os
from bisect import bisect_left, insort
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch

from esmflow.model.pack import Pack

#: On a CPU a pack should stay in the cache.
CPU_TOKENS = 1024


def plan_packs(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Divide sequences into packs of at most `budget` tokens (best fit decreasing), longest sequences first.

    tokens: int64 [sequences]. Returns row numbers for each pack; rows of a pack are in order of falling length. A
    sequence longer than the budget gets a pack of its own.
    """
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for row in np.argsort(-tokens, kind="stable").tolist():
        length = int(tokens[row])
        fit = bisect_left(free, (length, 0))
        if fit < len(free):
            space, number = free.pop(fit)
            packs[number].append(row)
        else:
            space, number = budget, len(packs)
            packs.append([row])
        if space > length:
            insort(free, (space - length, number))
    return [np.array(rows) for rows in packs]


class InlineLoader:
    """Makes packs at once, in the thread that asks: on a CPU there is no device to stay ahead of."""

    def load(self, sequences: Sequence[bytes], kept: Sequence[tuple[int, int]]) -> Future[Pack]:
        """A future of `Pack.of`."""
        future: Future[Pack] = Future()
        future.set_result(Pack.of(sequences, kept))
        return future

    def close(self) -> None:
        """Nothing to close."""


class ProcessLoader:
    """Makes packs in processes that hold no state and see no CUDA device.

    A process that dies fails the futures of its packs, and of all later ones, with BrokenProcessPool.
    """

    def __init__(self, processes: int = 2) -> None:
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_hide_cuda)

    def load(self, sequences: Sequence[bytes], kept: Sequence[tuple[int, int]]) -> Future[Pack]:
        """A future of `Pack.of`."""
        try:
            return self._pool.submit(Pack.of, sequences, kept)
        except BrokenProcessPool as error:
            failed: Future[Pack] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        """End the processes; what they have not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


def _hide_cuda() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        raise RuntimeError("a loader process sees a CUDA device")
