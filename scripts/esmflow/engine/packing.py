"""Which sequences go into one pack."""

from bisect import bisect_left, insort

import numpy as np

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
