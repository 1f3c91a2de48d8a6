"""Which sequences go into one pack."""

from bisect import bisect_left
from itertools import pairwise

import numpy as np

#: On a CPU a pack should stay in the cache.
CPU_TOKENS = 1024


def plan_packs(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Divide sequences into packs of at most `budget` tokens (best fit decreasing), longest sequences first.

    tokens: int64 [sequences]. Returns row numbers for each pack; rows of a pack are in order of falling length. A
    sequence longer than the budget gets a pack of its own.
    """
    packs: list[list[int]] = []
    # What is free in the packs that have room, the fullest first, and which these are.
    free: list[int] = []
    numbers: list[int] = []
    order = np.argsort(-tokens, kind="stable")
    sorted_tokens = tokens[order]
    rows, starts = order.tolist(), [0, *(np.flatnonzero(np.diff(sorted_tokens)) + 1).tolist(), len(order)]
    for first, last in pairwise(starts if len(order) else []):
        length = int(sorted_tokens[first])
        while first < last:
            fit = bisect_left(free, length)
            if fit < len(free):
                space, number = free.pop(fit), numbers.pop(fit)
            else:
                space, number = budget, len(packs)
                packs.append([])
            # With one of that length it is fuller still, and so the next one's place, too.
            taken = rows[first : min(first + max(space // length, 1), last)]
            packs[number] += taken
            first += len(taken)
            space -= length * len(taken)
            if space > 0:
                place = bisect_left(free, space)
                free.insert(place, space)
                numbers.insert(place, number)
    return [np.array(rows) for rows in packs]
