"""Files: atomic writing, what is left of it by those that were killed, and checksums."""

import errno
import functools
import glob
import hashlib
import os
import pwd
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar

import psutil

from esmflow.errors import DataError

_Content = TypeVar("_Content")


#: What ends the name of a temporary file: its machine, process, when that began, and a number of its own.
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.tmp")
#: Seconds after which what nobody wrote to is left over, where its process cannot be asked for.
_LEFT_OVER = 24 * 3600


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `target`; on success fsync it and rename it to `target`.

    On failure the temporary file is removed and `target` is untouched; an OSError tells of `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o666))
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new temporary directory beside `target`; on success it replaces `target`, else it is removed.

    What was there goes aside before it is removed, since NFS keeps what others have open, and its directory.
    An OSError tells of `target`.
    """
    with scratch_directory(target) as temporary:
        try:
            yield temporary
            _replace_directory(target, temporary)
        except OSError as error:
            error.filename = error.filename or str(target)
            raise


def _replace_directory(target: Path, new: Path) -> None:
    aside = temporary_name(target)
    with suppress(FileNotFoundError):
        target.rename(aside)
    try:
        new.replace(target)
    except OSError as error:
        # Another process has put its own there meanwhile.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            _replace_directory(target, new)
            return
        with suppress(OSError):
            aside.rename(target)
        raise
    finally:
        remove(aside)


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target` for what is needed to make that; it is removed at the end."""
    directory = temporary_name(target)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        remove(directory)


def temporary_name(target: Path) -> Path:
    """A name beside `target` that nobody else has, nor can foretell; what was left under such names is removed."""
    sweep(target.parent, f".{glob.escape(target.name)}.*.tmp")
    pid = os.getpid()
    return target.with_name(f".{target.name}.{_machine()}-{pid}-{_began(pid)}-{secrets.token_hex(4)}.tmp")


def is_left_over(path: Path) -> bool:
    """Whether a temporary file or directory is of a process that is no more.

    Of processes elsewhere, on other machines and in other containers, that is told by its age alone.
    """
    if (match := _TEMPORARY.search(path.name)) and match[1] == _machine():
        return not _runs(int(match[2]), began=int(match[3]))
    try:
        return all(time.time() - part.lstat().st_mtime > _LEFT_OVER for part in chain([path], path.rglob("*")))
    except FileNotFoundError:
        return False


def sweep(directory: Path, pattern: str = ".*") -> None:
    """Remove the hidden files, of names like `pattern`, that killed processes have left in a directory."""
    for path in directory.glob(pattern):
        if is_left_over(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@functools.cache
def _machine() -> str:
    """What tells the processes that this one can see from those elsewhere: the machine, its start, the container."""
    try:
        return _short(Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return _short(socket.gethostname())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _runs(pid: int, *, began: int) -> bool:
    """Whether that process is still there, and no other one under its number; one that has ended writes no more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and abs(_began(pid) - began) <= 1
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _began(pid: int) -> int:
    """When a process began, in seconds since the system's start: what the clock says of that moves with it."""
    return int(psutil.Process(pid).create_time() - psutil.boot_time())


def forbidden(path: Path) -> str | None:
    """Why this user may not read a file or directory, and what its owner can do; None if that is not the reason."""
    path = path.absolute()
    for part in (*reversed(path.parents), path):
        if not part.exists():
            return None
        needs = (os.X_OK if part.is_dir() else 0) | (os.R_OK if part == path else 0)
        if not os.access(part, needs):
            break
    else:
        return None
    status = part.stat()
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    who = "g" if status.st_gid in {os.getegid(), *os.getgroups()} else "o"
    return (
        f"{part}: cannot be read: it belongs to {owner}, and its mode {status.st_mode & 0o777:o} forbids it; "
        f"have {owner} run chmod -R {who}+rX {part}"
    )


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk. Some file systems cannot flush a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)):
            raise
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8 to `target` in one atomic step."""
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


#: The first lines of a JSON file: the SHA-256 of all but the second of them.
_JSON_SEAL = re.compile(rb'\A\{\n "checksum": "([0-9a-f]{64})",\n')


def write_json(target: Path, value: object) -> None:
    """Write a dataclass, of what JSON can hold, to `target` in one atomic step, with a checksum before its fields."""
    # Only here, so that the engine can be had where this package is not.
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    write_text(target, text.replace("{\n", f'{{\n "checksum": "{checksum}",\n', 1))


def read_json(path: Path, kind: type[_Content], remedy: str = "delete it and run again") -> _Content:
    """The dataclass of that kind that `write_json` wrote. Raises DataError, with the remedy, if the file is damaged."""
    import msgspec

    content = path.read_bytes()
    name = re.sub(r"\B([A-Z])", r" \1", kind.__name__).lower()
    # Those of earlier versions have no checksum.
    if seal := _JSON_SEAL.match(content):
        content = b"{\n" + content[seal.end() :]
        if hashlib.sha256(content).hexdigest().encode() != seal[1]:
            raise DataError(f"{path}: {name} is damaged (its checksum is another); {remedy}")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {name} is damaged ({error}); {remedy}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
