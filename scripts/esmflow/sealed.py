"""Sealed Parquet files, of which nothing that rots is ever taken for what was written.

The SHA-256 of the pages and a checksum of the footer lie between the last page and the footer, where no reader looks.
A page may carry a checksum of its own by the Parquet format, for those who read but a part of a file.
"""

import functools
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from esmflow import files
from esmflow.errors import DataError

_DIGEST = hashlib.sha256().digest_size


class DamagedError(Exception):
    """The bytes of a file are not those that were written; the text says how that shows."""


class MalformedError(DamagedError):
    """The bytes are those that were written, and were wrong even then."""


def seal(path: Path) -> None:
    """Put the SHA-256 of a Parquet file's pages, and a checksum of that and the footer, before the footer."""
    with path.open("r+b") as file:
        begin, footer = _footer(file)
        digest = _digest(file, begin)
        file.seek(begin)
        file.write(digest + _checksum(digest + footer) + footer)


@contextmanager
def writer(target: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a file that is read whole, in one atomic step."""
    with files.atomic(target) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as parquet:
            yield parquet
        seal(temporary)


def open_file(path: Path) -> pq.ParquetFile:
    """Open a file to be read with the checksums of its pages. Raises DamagedError if its footer is damaged."""
    with path.open("rb") as file:
        _sealed(file)
    return pq.ParquetFile(path, page_checksum_verification=True)


def check(path: Path) -> None:
    """Read a file whole. Raises DamagedError if any of its bytes is not as it was written."""
    with path.open("rb") as file:
        size, digest = _sealed(file)
        if _digest(file, size) != digest:
            raise DamagedError("what comes before the footer has another checksum")


def whole(path: Path) -> Path:
    """The path of what an earlier step wrote, once that was checked. Raises DataError if it is damaged."""
    status = path.stat()
    _check_once(path, status.st_size, status.st_mtime_ns, status.st_ino)
    return path


# A command asks for the same file several times.
@functools.lru_cache(maxsize=1024)
def _check_once(path: Path, *_: int) -> None:
    try:
        check(path)
    except DamagedError as error:
        raise DataError(
            f"{path}: is damaged ({error}), or of an earlier version of esmflow; delete it and run again"
        ) from error


def _sealed(file: IO[bytes]) -> tuple[int, bytes]:
    """The number of bytes before the seal and their SHA-256. Raises DamagedError if seal or footer are damaged."""
    begin, footer = _footer(file)
    size = begin - _DIGEST - 4
    if size < 0:
        raise DamagedError("it is cut short")
    file.seek(size)
    digest, checksum = file.read(_DIGEST), file.read(4)
    if checksum != _checksum(digest + footer):
        raise DamagedError("the footer has another checksum")
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
