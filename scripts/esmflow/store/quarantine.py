"""The quarantine: what is proven to be damaged is set aside, so that what it held counts as missing."""

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from esmflow import sealed
from esmflow.errors import DataError, IncompleteError
from esmflow.sealed import DamagedError, MalformedError

#: Where in the store damaged files are put.
QUARANTINE = "quarantine"

log = logging.getLogger(__name__)


class SetAsideError(IncompleteError):
    """A file was damaged and is in quarantine now."""


@contextmanager
def reading(path: Path, store: Path | None = None) -> Iterator[None]:
    """Set a file aside if what is read of it within fails, and its bytes, read once more, are not those written.

    store: in whose quarantine to put it, if it is not one of a store's own files.
    Raises SetAsideError then, DataError if it cannot be set aside. What fails though the file is whole, such as for
    want of memory, is raised as it is, or as IncompleteError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (DamagedError, pa.ArrowException, OSError) as error:
        if not (damage := _damage(path, error)):
            raise _passing(path, error) from error
        root, *place = path.parents[3], *path.parts[-3:]
        aside = (store or root) / QUARANTINE / ".".join(place)
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, aside)
        except FileNotFoundError:
            pass
        except OSError:
            raise DataError(
                f"{path}: is damaged ({damage}) and cannot be moved away; delete it and run again with --forcerun plan"
            ) from error
        log.warning("%s: is damaged (%s); it is now %s", path, damage, aside)
        raise SetAsideError(f"{path}: is damaged and set aside; run again with --forcerun plan") from error


def failed(paths: Iterable[Path], error: Exception) -> Exception:
    """What to raise where several store files were read at once, and that failed. Those that are damaged are set aside.

    Raises as `reading` does.
    """
    for path in paths:
        try:
            with reading(path):
                sealed.check(path)
        except SetAsideError as aside:
            return aside
        except FileNotFoundError:
            return IncompleteError(f"{path}: store file is gone; run again with --forcerun plan")
    return _passing(path.parent, error)


def _damage(path: Path, error: Exception) -> str | None:
    """How it shows that a file is damaged; None if it is whole."""
    if isinstance(error, MalformedError):
        return str(error)
    try:
        sealed.check(path)
    except DamagedError as damage:
        return str(damage)
    return None


def _passing(path: Path, error: Exception) -> Exception:
    """The error of what could not be read though it is whole: of the system, if it has a number, else one of ours."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    text = str(error).partition("\n")[0] or type(error).__name__
    return IncompleteError(f"{path}: could not be read ({text}); nothing there is damaged, run again")
