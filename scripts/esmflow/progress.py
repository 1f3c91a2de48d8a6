"""Progress lines for a log file or a terminal: plain text, at most one every few seconds."""

import logging
import time
from collections.abc import Callable


class Progress:
    """Logs what is done, the rate and the time left, at most once every `interval` seconds."""

    def __init__(
        self, log: logging.Logger, interval: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._interval, self._clock = log, interval, clock
        self._last = clock()

    def report(self, text: str, *, final: bool = False) -> None:
        """Log `text` if the last line is `interval` seconds old, or at once if `final`."""
        now = self._clock()
        if final or now - self._last >= self._interval:
            self._last = now
            self._log.info("%s", text)


class WorkProgress:
    """Progress of an embedding job whose total work is known.

    The time left is extrapolated by cost (FLOPs), since long proteins cost more per residue than short ones.
    """

    def __init__(self, log: logging.Logger, sequences: int, residues: int, cost: float) -> None:
        self._progress = Progress(log)
        self._sequences, self._residues, self._cost = sequences, residues, cost
        self._start = time.monotonic()
        self._final = False

    def update(self, sequences: int, residues: int, cost: float) -> None:
        """Take what is done so far."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        left = seconds * max(self._cost / cost - 1, 0) if cost else 0
        final, self._final = sequences == self._sequences and not self._final, sequences == self._sequences
        self._progress.report(
            f"{sequences:,} of {self._sequences:,} sequences, {residues:,} of {self._residues:,} residues, "
            f"{residues / seconds:,.0f} residues/s, {duration(left)} left",
            final=final,
        )


def duration(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:.0f}:{minutes:02.0f}:{seconds:02.0f}"
