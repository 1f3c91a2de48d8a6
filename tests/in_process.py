"""Commands of the workflow run in the process of the tests, where being a process of its own is not what is tested."""

import contextlib
import io
import logging
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from workflow import ROOT


def call(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command by hand without the second that a process takes to import; see `workflow.script`."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    command = [str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    with _restored(), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        sys.argv = command
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back what a command sets in its process: signals, the log, and that there is no pandas."""
    root = logging.getLogger()
    handlers, level, raising = [*root.handlers], root.level, logging.raiseExceptions
    argv, hook, finders = sys.argv, sys.excepthook, [*sys.meta_path]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raising
        sys.argv, sys.excepthook, sys.meta_path[:] = argv, hook, finders
        for number, handling in signals.items():
            signal.signal(number, handling)
