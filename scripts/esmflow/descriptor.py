"""What is known of a model once its weights are in place."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from esmflow import files

#: Letters of the alphabet, and so logits of a token.
LETTERS = 33


@dataclass(frozen=True)
class Architecture:
    """The shape of an ESM trunk, as read from a weights file."""

    kind: str
    """`ESM-2` (rotary positions) or `ESM-1b` (learned positions: ESM-1b and ESM-1v)."""
    layers: int
    embed_dim: int
    heads: int
    ffn_dim: int
    token_dropout: bool
    max_residues: int | None
    """The longest sequence the positions reach; None for rotary positions."""
    lm_head: bool
    """Whether logits can be had."""
    contact_head: bool
    """Whether contacts can be had."""

    @property
    def matrix_numbers(self) -> int:
        """Numbers in the matrices of all layers: nearly all that there are in the trunk."""
        return self.layers * (4 * self.embed_dim**2 + 2 * self.embed_dim * self.ffn_dim)

    def flops(self, tokens: np.ndarray, layers: int) -> np.ndarray:
        """Floating-point operations of the first `layers` layers (at least one), linear and attention.

        tokens: int [sequences], residues plus BOS and EOS. A multiplication and an addition count as two. Returns
        float64 [sequences].
        """
        linear = 2 * (4 * self.embed_dim**2 + 2 * self.embed_dim * self.ffn_dim)
        operations: np.ndarray = max(layers, 1) * tokens.astype(np.float64) * (linear + 4 * self.embed_dim * tokens)
        return operations


@dataclass(frozen=True)
class Descriptor:
    """A model that is in place: where its weights lie, what they are, and the hash that keys the store."""

    name: str
    files: list[str]
    stamp: list[list[int]]
    """Bytes and time of change (ns) of each file."""
    sha256: str
    architecture: Architecture

    def save(self, path: Path) -> None:
        """Write the descriptor as JSON, in one atomic step."""
        files.write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Descriptor":
        """Read a descriptor written by `save`."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**fields | {"architecture": Architecture(**fields["architecture"])})
