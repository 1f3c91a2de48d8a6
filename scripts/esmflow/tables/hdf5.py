"""Writing HDF5 files, whose library ends a process at once where a disk is full, or shows no error but a traceback."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from esmflow import files


class Hdf5(h5py.File):  # type: ignore[misc]
    """A new HDF5 file, of which the first error of the disk is kept until somebody asks."""

    def __init__(self, raw: "_Kept") -> None:
        super().__init__(raw, "w")
        self._raw = raw

    def check(self) -> None:
        """Raise the OSError that writing met. What is written after it is lost, so ask now and then."""
        self._raw.check()


@contextmanager
def writing(target: Path) -> Iterator[Hdf5]:
    """Write an HDF5 file in one atomic step. Raises OSError where that cannot be."""
    with files.atomic(target) as temporary, temporary.open("r+b", buffering=0) as file:
        raw = _Kept(file)
        try:
            with Hdf5(raw) as hdf5:
                yield hdf5
        finally:
            # The disk's error, and not what the library makes of reading back what was never written.
            raw.check()


def text(value: str) -> str:
    """A text that HDF5 can hold: it has none with a NUL."""
    return value.replace("\0", "\\x00")


class _Kept:
    """A file for HDF5, which is told that all went well: it cannot go on, nor even end, after an error.

    What the disk has not taken is kept: HDF5 reads back what it wrote, and may crash on anything else.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self._untaken: list[tuple[int, bytes]] = []
        self.seek, self.tell, self.read = file.seek, file.tell, file.read

    def check(self) -> None:
        """Raise the error."""
        if self.error:
            raise self.error

    def write(self, data: memoryview) -> int:
        place, left = self._file.tell(), memoryview(data)
        try:
            while left and not self.error:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = error
        if self.error:
            self._untaken.append((place, bytes(data)))
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        place, target = self._file.tell(), memoryview(buffer)
        count = self._file.readinto(target)
        for begin, data in self._untaken:
            first, last = max(begin, place), min(begin + len(data), place + len(target))
            if first < last:
                target[first - place : last - place] = data[first - begin : last - begin]
        return len(target) if self._untaken else count

    def truncate(self, size: int) -> int:
        try:
            if not self.error:
                self._file.truncate(size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """There is nothing to flush."""
