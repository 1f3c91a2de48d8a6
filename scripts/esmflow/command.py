"""What every command shares: its log, and its way to end (one line and the exit code of the contract)."""

import argparse
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import FrameType, TracebackType

from esmflow import files
from esmflow.errors import DataError, EsmflowError, IncompleteError, WriteError, passing

_INTERRUPTED = "interrupted; what was committed is kept, run the same command again to go on"
_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "the file-size limit is reached; raise it (ulimit -f) and run again",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose another place or ask its owner",
    errno.EPERM: "not permitted; choose another place or ask its owner",
    errno.ENOTDIR: "a file stands where a directory is needed; move it away",
}


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options that all commands share."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--log", type=Path, help="write the log to this file as well as to standard error")
    return result


def add_table_options(arguments: argparse.ArgumentParser) -> None:
    """Add the options of a command that writes a sample's values of one model: catalog, model and store."""
    arguments.add_argument("--catalog", type=Path, required=True)
    arguments.add_argument("--model", required=True, help="the model's name in the config")
    arguments.add_argument(
        "--spec", type=json.loads, required=True, help="its config, with the layers and representations alone, as JSON"
    )
    arguments.add_argument("--descriptor", type=Path, required=True)
    arguments.add_argument("--store", type=Path, required=True)


def number_or_auto(text: str) -> int | None:
    """The type of an option that is a number, or None for `auto`."""
    return None if text == "auto" else int(text)


def run(
    command: Callable[[argparse.Namespace], None],
    arguments: argparse.ArgumentParser,
    *,
    interrupted: str = _INTERRUPTED,
) -> None:
    """Parse the arguments, run the command and exit with the contract's code.

    interrupted: the line of a command that SIGINT or SIGTERM ended.
    """
    options = arguments.parse_args()
    # A log that cannot be written must not hide the one line that says so.
    logging.raiseExceptions = False
    _log_to(logging.StreamHandler(sys.stderr))
    signals: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is _interrupted_early:
            signal.signal(signal.SIGINT, interrupt)
        if options.log:
            options.log.parent.mkdir(parents=True, exist_ok=True)
            _log_to(logging.FileHandler(options.log, mode="w", encoding="utf-8"))
        command(options)
    except KeyboardInterrupt:
        _end(IncompleteError(interrupted))
    except Exception as error:
        # Libraries that a signal reaches while they call Python make other errors of it.
        known = IncompleteError(interrupted) if signals else _known(error)
        if known:
            _end(known)
        logging.exception("unexpected error")
        sys.exit(1)


def _known(error: Exception) -> EsmflowError | None:
    """What an error is to a user; None if it is a bug."""
    if isinstance(error, EsmflowError):
        return error
    if passed := passing(error):
        return passed
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError):
        return IncompleteError(f"{error.filename or error}: is not there, or no more; make it first, then run again")
    number = error.errno or 0
    if number == errno.EACCES and error.filename and (told := files.forbidden(Path(os.fsdecode(error.filename)))):
        return DataError(told)
    if number in _CANNOT_WRITE:
        return WriteError(f"{error.filename or 'output'}: cannot be written: {_CANNOT_WRITE[number]}")
    return None


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)


def _end(error: EsmflowError) -> None:
    logging.error("error: %s", error)
    sys.exit(error.exit_code)


def _failed_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends a command while it imports is told in a line, too."""
    if isinstance(error, Exception) and (known := _known(error)):
        os.write(2, f"error: {known}\n".encode())
        os._exit(known.exit_code)
    sys.__excepthook__(kind, error, trace)


def _interrupted_early(*_: object) -> None:
    os.write(2, f"error: {_INTERRUPTED}\n".encode())
    os._exit(IncompleteError.exit_code)


# Before numpy and pyarrow are imported, which else begin with threads for every core: commands take one, but for the
# processes of a worker, which set it for themselves.
for _variable in ("OMP_NUM_THREADS", "ARROW_IO_THREADS"):
    os.environ.setdefault(_variable, "1")


class _WithoutPandas(MetaPathFinder):
    """Makes pandas absent: no command needs it, and pyarrow would import it, in a quarter of a second."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("commands do without pandas", name=name)


sys.meta_path.insert(0, _WithoutPandas())

sys.excepthook = _failed_early
# A command imports for seconds before it runs. An interrupt then ends it without a traceback, unless it is ignored.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted_early)
