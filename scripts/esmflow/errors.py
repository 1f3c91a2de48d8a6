"""Errors that a user can act on, each with its exit code (sysexits.h)."""

import errno
import os

#: Errors of the system that pass, or are for whoever runs the machine to mend; no file is to blame.
_PASSING = {
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and run again",
    errno.ENFILE: "too many files are open on this machine; run again later",
    errno.ENOMEM: "memory is short; give the job more and run again",
    errno.EAGAIN: "no process or thread can be had; raise the limit (ulimit -u), or give more memory, and run again",
    errno.EIO: "the disk or the network failed; run again once it is well",
    errno.ESTALE: "the file server has lost it from sight; run again",
}


def printable(text: str) -> str:
    """A text in one line: what a terminal would obey, or not show, is written as in Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class EsmflowError(Exception):
    """An error whose text is one line: what, where and what to do."""

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class DataError(EsmflowError):
    """The input data is bad: a FASTA, a weights file, a damaged store file."""

    exit_code = 65


class DeviceError(EsmflowError):
    """No usable device."""

    exit_code = 69


class DeviceLostError(DeviceError):
    """The device, or a process that feeds it, is lost to this process; another process may go on."""


class WriteError(EsmflowError):
    """An output cannot be written: disk full, no permission."""

    exit_code = 73


class IncompleteError(EsmflowError):
    """The work was interrupted or is incomplete; running again goes on from there."""

    exit_code = 75


class ConfigError(EsmflowError):
    """The configuration is bad."""

    exit_code = 78


def passing(error: BaseException, path: object = None) -> IncompleteError | None:
    """What to raise in place of an error that passes, at whatever path it was met; None for any other."""
    # Where there is no room for a library, Python says that it cannot be imported.
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "map segment" in str(error)):
        return IncompleteError("out of memory; give the job more and run again")
    # Neither Python nor Arrow has a class for it.
    if any(text in str(error) for text in ("can't start new thread", os.strerror(errno.EAGAIN))):
        return IncompleteError(_PASSING[errno.EAGAIN])
    if isinstance(error, OSError) and error.errno in _PASSING:
        return IncompleteError(f"{path or error.filename or error}: {_PASSING[error.errno]}")
    return None
