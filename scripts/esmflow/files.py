"""Files: atomic writing, checksums, and opening compressed input by content."""

import gzip
import hashlib
import io
import lzma
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import zstandard

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success fsync it and rename it to `target`.

    The temporary name is the writer's own (scheduler job and process ID), so that two writers of the same
    target never share a file. On failure the temporary file is removed and `target` is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    job = re.sub(r"\W", "", os.environ.get("SLURM_JOB_ID", "local"))
    temporary = target.with_name(f".{target.name}.{job}-{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8 to `target` in one atomic step."""
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_content(path: Path) -> IO[bytes]:
    """Open a plain, gzip, xz or zstd file for reading, told apart by its first bytes, not by its name."""
    file = path.open("rb")
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(GZIP):
        return gzip.open(file)  # type: ignore[return-value]
    if magic.startswith(XZ):
        return lzma.open(file)
    if magic.startswith(ZSTD):
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True),
            buffer_size=1 << 20,
        )
    return file
