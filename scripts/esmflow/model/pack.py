"""Packs: sequences laid end to end without padding, for one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esmflow.alphabet import BOS, EOS, MASK, MASK_LETTER, TOKENS, UNKNOWN

#: The number of each letter's token; what is none is unknown.
_TOKEN_OF_BYTE = bytearray([UNKNOWN]) * 256
for _number, _token in enumerate(TOKENS):
    if len(_token) == 1:
        _TOKEN_OF_BYTE[ord(_token)] = _number
_TOKEN_OF_BYTE[ord(MASK_LETTER)] = MASK
_TOKEN_OF_BYTE[ord("<")], _TOKEN_OF_BYTE[ord(">")] = BOS, EOS


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end, each as BOS, residues, EOS; on the host."""

    tokens: np.ndarray
    """uint8 [total tokens]."""
    cu_seqlens: np.ndarray
    """int32 [sequences + 1]: where each sequence begins, and the end of the last."""
    kept: np.ndarray
    """int64 [sequences, 2]: the first token of each sequence that is pooled, and the one after the last."""

    @classmethod
    def of(cls, sequences: Sequence[bytes], kept: np.ndarray | None = None) -> "Pack":
        """Tokenise and concatenate sequences of upper-case residue letters and, for a mask, `MASK_LETTER`.

        kept: int64 [sequences, 2], the first residue of each that is pooled, and the one after the last; without it,
        all are.
        """
        text = bytearray(b"><").join([b"", *sequences, b""]).translate(_TOKEN_OF_BYTE)
        tokens = np.frombuffer(text, np.uint8)[1:-1]
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths + 2)])
        residues = np.column_stack([np.zeros_like(lengths), lengths]) if kept is None else kept
        return cls(tokens, cu_seqlens.astype(np.int32), residues + cu_seqlens[:-1, None] + 1)

    @property
    def lengths(self) -> np.ndarray:
        """int32 [sequences], in tokens."""
        return np.diff(self.cu_seqlens)

    @property
    def masks(self) -> np.ndarray:
        """int64 [sequences]: how many tokens of each are masks."""
        masks: np.ndarray = np.add.reduceat(self.tokens == MASK, self.cu_seqlens[:-1], dtype=np.int64)
        return masks


def upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of these values on the device; a GPU takes them from pinned memory, and the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
