"""Packs: sequences laid end to end without padding, for one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esmflow.alphabet import BOS, EOS, MASK, MASK_LETTER, TOKENS, UNKNOWN

_TOKEN_OF_BYTE = np.full(256, UNKNOWN, dtype=np.int64)
_TOKEN_OF_BYTE[[ord(token) for token in TOKENS if len(token) == 1]] = [
    number for number, token in enumerate(TOKENS) if len(token) == 1
]
_TOKEN_OF_BYTE[ord(MASK_LETTER)] = MASK


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end, each as BOS, residues, EOS; on the host."""

    tokens: np.ndarray
    """int64 [total tokens]."""
    cu_seqlens: np.ndarray
    """int32 [sequences + 1]: where each sequence begins, and the end of the last."""
    kept: np.ndarray
    """int64 [sequences, 2]: the first token of each sequence that is pooled, and the one after the last."""

    @classmethod
    def of(cls, sequences: Sequence[bytes], kept: Sequence[tuple[int, int]] | None = None) -> "Pack":
        """Tokenise and concatenate sequences of upper-case residue letters and, for a mask, `MASK_LETTER`.

        `kept` has the first residue of each that is pooled, and the one after the last; without it, all are.
        """
        letters = np.frombuffer(b"".join(b"<" + residues + b">" for residues in sequences), dtype=np.uint8)
        tokens = _TOKEN_OF_BYTE[letters]
        ends = np.cumsum([len(residues) + 2 for residues in sequences])
        tokens[ends - 1] = EOS
        tokens[np.concatenate([[0], ends[:-1]])] = BOS
        cu_seqlens = np.concatenate([[0], ends])
        ranges = np.array(kept or [(0, len(residues)) for residues in sequences]) + cu_seqlens[:-1, None] + 1
        return cls(tokens, cu_seqlens.astype(np.int32), ranges)

    @property
    def lengths(self) -> np.ndarray:
        """int32 [sequences], in tokens."""
        return np.diff(self.cu_seqlens)

    @property
    def masks(self) -> np.ndarray:
        """int64 [sequences]: how many tokens of each are masks."""
        masks: np.ndarray = np.add.reduceat(self.tokens == MASK, self.cu_seqlens[:-1], dtype=np.int64)
        return masks

    @property
    def positions(self) -> np.ndarray:
        """int64 [total tokens]: the place of each token in its sequence, from 0."""
        positions: np.ndarray = np.arange(len(self.tokens)) - np.repeat(self.cu_seqlens[:-1], self.lengths)
        return positions


def upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of these values on the device; a GPU takes them from pinned memory, and the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
