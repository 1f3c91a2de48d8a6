"""What a weights file is, for a reader: nothing is computed with it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from esmflow.architecture import Architecture
from esmflow.model import weights
from esmflow.model.state import weight_files


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
    return Card(path, architecture, dtype, weights.digest(parts, [], checkpoint.settings), weights.licence(parts[0]))
