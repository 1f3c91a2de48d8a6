"""The seal of store files: whatever is read is checked, and what is damaged is set aside.

A page carries a checksum by the Parquet format, and the footer one of ours. It lies between the last page and the
footer, where no reader looks, together with the SHA-256 of all that comes before, for a flipped bit anywhere to show.
"""

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow.errors import DataError, IncompleteError

#: Where in the store damaged files are put.
QUARANTINE = "quarantine"
_DIGEST = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


def seal(path: Path) -> None:
    """Put the SHA-256 of a Parquet file's pages, and a checksum of that and the footer, before the footer."""
    with path.open("r+b") as file:
        begin, footer = _footer(file)
        digest = _digest(file, begin)
        file.seek(begin)
        file.write(digest + _checksum(digest + footer) + footer)


def open_file(path: Path) -> pq.ParquetFile:
    """Open a store file to be read with its checksums. Raises pyarrow.ArrowInvalid if its footer is damaged."""
    with path.open("rb") as file:
        _sealed(file)
    return pq.ParquetFile(path, page_checksum_verification=True)


def check_bytes(path: Path) -> None:
    """Raise pyarrow.ArrowInvalid if any byte of a store file is not as it was committed."""
    with path.open("rb") as file:
        size, digest = _sealed(file)
        if _digest(file, size) != digest:
            raise pa.ArrowInvalid("what comes before the footer has another checksum")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Set a store file aside if what is read of it within is damaged, so that what it held counts as missing.

    Raises IncompleteError then; DataError if it cannot be set aside.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Of OSError, only pyarrow's own for a damaged page has no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        root, *place = path.parents[3], *path.parts[-3:]
        aside = root / QUARANTINE / ".".join(place)
        try:
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
        except FileNotFoundError:
            pass
        except OSError:
            raise damaged(path, error) from error
        log.warning("%s: store file is damaged (%s); it is now %s", path, _first_line(error), aside)
        raise IncompleteError(f"{path}: store file is damaged and set aside; run again with --forcerun plan") from error


def damaged(path: Path, error: Exception) -> DataError:
    """The error for what cannot be read of the store, and not be set aside."""
    return DataError(
        f"{path}: store is damaged ({_first_line(error)}); delete what is damaged and run again with --forcerun plan"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _sealed(file: IO[bytes]) -> tuple[int, bytes]:
    """The number of bytes before the seal and their SHA-256. Raises ArrowInvalid if seal or footer are damaged."""
    begin, footer = _footer(file)
    size = begin - _DIGEST - 4
    if size < 0:
        raise pa.ArrowInvalid("it is cut short")
    file.seek(size)
    digest, checksum = file.read(_DIGEST), file.read(4)
    if checksum != _checksum(digest + footer):
        raise pa.ArrowInvalid("the footer has another checksum")
    return size, digest


def _footer(file: IO[bytes]) -> tuple[int, bytes]:
    """Where a Parquet file's footer begins, and the footer with what follows it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    begin = max(size - 8 - int.from_bytes(file.read(4), "little"), 0)
    file.seek(begin)
    return begin, file.read()


def _digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (chunk := file.read(min(size, 1 << 20))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _checksum(footer: bytes) -> bytes:
    return zlib.crc32(footer).to_bytes(4, "little")
