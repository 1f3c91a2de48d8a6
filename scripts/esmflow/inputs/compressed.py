"""FASTA files as bytes, whatever they are compressed with, which is told by content and not by name."""

import bz2
import gzip
import io
import logging
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from esmflow.errors import DataError

GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
#: A zstd frame, or one to be skipped, as parallel compressors write first.
ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)))
#: The empty block that ends a file in BGZF, the gzip of samtools and tabix (SAM specification, 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_BLOCK = 1 << 17
#: What a xz file may ask for, in bytes: `xz -9` needs 65 MB. zstd's own limit is a window of 128 MB.
_XZ_MEMORY = 256 << 20

log = logging.getLogger(__name__)


@contextmanager
def open_content(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain, gzip, bzip2, xz or zstd file for reading, decompressed in bounded memory.

    Compressed parts laid end to end are read to the last. Raises DataError, then or while reading, if the file
    cannot be read or its compressed data are damaged or cut short; a cut exactly between two parts shows only in BGZF,
    and is logged.
    """
    try:
        with _open(path) as stream:
            yield stream
    except OSError as error:
        if error.errno is not None:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); once it can be, touch it and run again"
            ) from error
        raise _damaged(path, error) from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(18)
        file.seek(-min(len(_BGZF_END), file.seek(0, os.SEEK_END)), os.SEEK_END)
        end = file.read()
    if magic.startswith(GZIP):
        if magic[12:14] == b"BC" and end != _BGZF_END:
            log.warning("%s: ends without the last block of BGZF; it may be cut short, compare with its source", path)
        return gzip.open(path)  # type: ignore[return-value]
    if magic.startswith(BZIP2):
        return io.BufferedReader(_Streams(path, bz2.BZ2Decompressor), _BLOCK)  # type: ignore[type-var]
    if magic.startswith(XZ):
        streams = _Streams(path, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY))
        return io.BufferedReader(streams, _BLOCK)  # type: ignore[type-var]
    if magic.startswith(ZSTD):
        # Only here, so that the sample sheet is read fast.
        import pyarrow as pa

        # Unlike the package zstandard, Arrow tells of a frame cut short, and gives what a frame holds piece by piece.
        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")  # type: ignore[no-any-return]
    return path.open("rb")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: compressed FASTA is cut short or damaged, or needs too much memory ({error}); "
        "fetch it again, or decompress it yourself"
    )


class _Streams(io.RawIOBase):
    """Streams of bzip2 or xz laid end to end, perhaps with zeros between, decompressed piece by piece.

    Python's own readers pass over all that follows a damaged stream but the first.
    """

    def __init__(self, path: Path, decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file, self._decompressor = path.open("rb"), decompressor
        self._stream = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = b""
        while not data:
            compressed = b""
            if self._stream.eof:
                compressed = self._stream.unused_data.lstrip(b"\0")
                while not compressed and (block := self._file.read(_BLOCK)):
                    compressed = block.lstrip(b"\0")
                if not compressed:
                    return 0
                self._stream = self._decompressor()
            elif self._stream.needs_input:
                compressed = self._file.read(_BLOCK)
                if not compressed:
                    raise EOFError("it ends too early")
            data = self._stream.decompress(compressed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
