"""What a weights file is, for a reader: nothing is computed with it."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from esmflow.architecture import Architecture
from esmflow.model import weights
from esmflow.model.state import weight_files
from esmflow.weights_source import OFFICIAL


@dataclass(frozen=True)
class Card:
    """What is told of weights."""

    path: Path
    architecture: Architecture
    dtype: str
    """Of most numbers in the file."""
    sha256: str
    licence: str
    """Empty if nothing tells of it."""


def card(path: Path) -> Card:
    """Read the weights at `path`. Raises DataError for what cannot be used."""
    parts = weight_files(path)
    checkpoint = weights.read(parts)
    numbers: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        numbers[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    [(dtype, _)] = numbers.most_common(1)
    architecture = checkpoint.architecture
    return Card(path, architecture, dtype, weights.digest(parts, [], checkpoint.settings), _licence(parts[0]))


def _licence(file: Path) -> str:
    """The licence that a model card of the Hugging Face Hub beside the file names, or that of fair-esm's own files."""
    readme = file.with_name("README.md")
    if readme.is_file():
        metadata = readme.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        if match := re.search(r"(?m)^license:\s*[\"']?([\w.-]+)", metadata):
            return match[1]
    return "mit" if file.suffix == ".pt" and file.stem in OFFICIAL else ""
