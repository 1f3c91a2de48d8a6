"""Files: atomic writing and checksums."""

import glob
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from esmflow.errors import DataError

_Content = TypeVar("_Content")


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success fsync it and rename it to `target`.

    On failure the temporary file is removed and `target` is untouched; an OSError tells of `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        error.filename = error.filename or str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new temporary directory beside `target`; on success it replaces `target`, else it is removed.

    An OSError tells of `target`.
    """
    temporary = temporary_name(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(target: Path) -> Path:
    """A name beside `target` that is this process's own, so that two writers of one target never share a file.

    What processes of this host left under such names for the same target, and which are no more, is removed.
    """
    host = re.sub(r"\W", "_", socket.gethostname())
    for stale in target.parent.glob(f".{glob.escape(target.name)}.{host}-*.tmp"):
        if not psutil.pid_exists(int(stale.stem.rpartition("-")[2])):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{host}-{os.getpid()}.tmp")


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


def write_json(target: Path, value: object) -> None:
    """Write a dataclass, of what JSON can hold, to `target` in one atomic step."""
    # Only here, so that the engine can be had where this package is not.
    import msgspec

    write_text(target, msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n")


def read_json(path: Path, kind: type[_Content]) -> _Content:
    """The dataclass of that kind that `write_json` wrote. Raises DataError if the file is damaged."""
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        name = re.sub(r"\B([A-Z])", r" \1", kind.__name__).lower()
        raise DataError(f"{path}: {name} is damaged ({error}); delete it and run again") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
