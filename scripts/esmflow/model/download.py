"""Downloading a file so that an attempt goes on where the one before was cut, and never ends with another file."""

import hashlib
import itertools
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from esmflow import files
from esmflow.errors import DataError
from esmflow.progress import Progress

_CHUNK = 1 << 20
_TIMEOUT = 60

log = logging.getLogger(__name__)


@dataclass
class _Part:
    """What is there of a file that is being downloaded."""

    path: Path
    tag: str
    """Tells the file from others that the server has had under its name; empty where the server does not."""


def download(url: str, target: Path) -> None:
    """Download to `target`, going on with what an earlier attempt left, and check the size that the server tells.

    A file that is another than at that attempt is downloaded anew. Raises DataError if it cannot be had.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _take(target)
    try:
        _complete(url, target, part)
        files.sync(part.path)
        part.path.replace(target)
    finally:
        with suppress(FileNotFoundError):
            part.path.rename(target.with_name(f"{target.name}{part.tag and '.'}{part.tag}.part"))


def _take(target: Path) -> _Part:
    """What an earlier attempt left, under a name of this process's own.

    Runs that share a store may download at once: one of them takes it, and each writes its own file.
    """
    part = _Part(files.temporary_name(target.with_name(f"{target.name}.part")), "")
    for left in target.parent.glob(f"{target.name}*.part"):
        with suppress(FileNotFoundError):
            left.rename(part.path)
            part.tag = left.name.removeprefix(target.name).removesuffix(".part").removeprefix(".")
    return part


def _complete(url: str, target: Path, part: _Part) -> None:
    """Download what `part` lacks of `target`. Raises DataError if that cannot be had."""
    advice = f"run again to go on, or bring {url} by other means and put it at {target.absolute()}"
    try:
        have, total = _receive(url, target, part)
    except _OtherFileError:
        log.info("%s: is another file than at the attempt before; it is downloaded anew", target.name)
        part.path.unlink()
        part.tag = ""
        _complete(url, target, part)
        return
    except _PageError as error:
        raise DataError(f"{target.name}: the answer is a web page, such as a network's login; {advice}") from error
    except (requests.RequestException, KeyError) as error:
        raise DataError(f"{target.name}: cannot be downloaded ({type(error).__name__}); {advice}") from error
    if have != total:
        if have > total:
            part.path.unlink()
        raise DataError(f"{target.name}: download ended at {have:,} of {total:,} bytes; run again to go on")


class _OtherFileError(Exception):
    """The server has another file under that name than before."""


class _PageError(Exception):
    """What came is a page for a browser."""


def _receive(url: str, target: Path, part: _Part) -> tuple[int, int]:
    """Add what comes to `part`: the bytes that are there then, and those that the file has."""
    have = part.path.stat().st_size if part.path.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    progress = Progress(log)
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
        if reply.status_code == requests.codes.requested_range_not_satisfiable:
            if part.tag not in ("", _tag(reply)):
                raise _OtherFileError
            return have, int(reply.headers.get("Content-Range", "*/-1").rpartition("/")[2])
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        if resumed and part.tag not in ("", _tag(reply)):
            raise _OtherFileError
        have = have if resumed else 0
        total = have + int(reply.headers["Content-Length"])
        chunks = reply.iter_content(_CHUNK)
        first = next(chunks, b"")
        if not resumed and first.lstrip().startswith(b"<"):
            raise _PageError
        part.tag = _tag(reply)
        with part.path.open("ab" if resumed else "wb") as file:
            for chunk in itertools.chain([first], chunks):
                have += file.write(chunk)
                progress.report(f"{target.name}: {have:,} of {total:,} bytes")
    return have, total


def _tag(reply: requests.Response) -> str:
    """A short name of the file's version (its ETag, else its time of change) that can be part of a path."""
    version = reply.headers.get("ETag") or reply.headers.get("Last-Modified")
    return hashlib.sha256(version.encode()).hexdigest()[:8] if version else ""
