"""Errors that a user can act on, each with its exit code (sysexits.h)."""


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
