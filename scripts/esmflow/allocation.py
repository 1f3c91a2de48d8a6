"""The time and the memory that a worker job asks a scheduler for."""

import math

from esmflow.heartbeat import Heartbeat

#: Minutes that a job takes until it embeds.
_TO_START = 5
#: Of the time that was asked for: who was at work for so long was ended by the limit.
_ALL_OF_IT = 0.9


def minutes(expected: float, last: Heartbeat | None, most: int | None) -> int:
    """Minutes to ask for, of the expected ones: those to start and twice these; double that if they were not enough.

    last: the last heartbeat of the attempt before. most: never more than that.
    """
    asked = _TO_START + math.ceil(2 * expected)
    if last and last.updated - last.started >= 60 * _ALL_OF_IT * min(asked, most or asked):
        asked *= 2
    return min(asked, most or asked)


def memory_mb(expected: int, last: Heartbeat | None, most: int | None) -> int:
    """Megabytes to ask for: the expected ones; double that if the attempt before, or a process of it, was killed."""
    asked = expected * 2 if last and (last.state != "dead" or last.process_restarts) else expected
    return min(asked, most or asked)
