"""fair-esm's contact head over packed sequences."""

from collections.abc import Iterator

import numpy as np
import torch

from esmflow.model.pack import Pack, upload
from esmflow.model.trunk import Esm

#: Numbers of the attention maps that are computed together, of all heads: 64 MB in float32.
_NUMBERS = 1 << 24
#: Sequences that are computed together are no shorter than this part of the longest.
_SHORTEST = 0.8


class ContactMaps:
    """Contact maps of a pack's sequences, summed layer by layer so that no attention map outlives its layer.

    Attention between residues is symmetrised and corrected by the average product (Dunn et al. 2008,
    doi:10.1093/bioinformatics/btm604), then goes through a logistic regression (Rao et al. 2020,
    doi:10.1101/2020.12.15.422761; `esm.modules.ContactPredictionHead`).
    """

    def __init__(self, model: Esm, pack: Pack) -> None:
        self._weights, self._bias = model.contact_regression
        heads = model.architecture.heads
        self._groups = [_Group(pack, first, last, model.device) for first, last in _neighbours(pack.lengths, heads)]

    @torch.inference_mode()
    def observe(self, layer: int, qkv: torch.Tensor) -> None:
        """Add a layer's attention; qkv as it goes into attention, [total tokens, 3, heads, head_dim]."""
        for group in self._groups:
            group.add(qkv, self._weights[layer - 1])

    def maps(self) -> torch.Tensor:
        """Once all layers were observed: float32 [sum of residues x residues], one sequence's map behind the other."""
        return torch.cat([part for group in self._groups for part in group.maps(self._bias)])


class _Group:
    """The sequences first..last-1 of a pack, which lie in it one behind the other, padded to the longest."""

    def __init__(self, pack: Pack, first: int, last: int, device: torch.device) -> None:
        self._lengths = pack.lengths[first:last].tolist()
        longest = max(self._lengths)
        places = np.arange(longest)
        self._padded = min(self._lengths) < longest
        starts, ends = pack.cu_seqlens[first:last, None], pack.cu_seqlens[first + 1 : last + 1, None]
        # In the place of padding stands the sequence's last token.
        self._tokens = upload(np.minimum(starts + places, ends - 1).astype(np.int64).reshape(-1), device)
        if self._padded:
            lengths = np.array(self._lengths)[:, None]
            residue = places[1:-1] < lengths - 1
            self._beyond = upload((places >= lengths)[:, None, None], device)
            self._no_residue = upload(~(residue[:, None, :, None] & residue[:, None, None, :]), device)
        self._sum: torch.Tensor | float = 0.0

    def add(self, qkv: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a layer's attention, with the weight of each head."""
        count, (_, _, heads, head_dim) = len(self._lengths), qkv.shape
        both = qkv[:, :2].index_select(0, self._tokens).view(count, -1, 2, heads, head_dim)
        q, k = both.float().permute(2, 0, 3, 1, 4).unbind()
        scores = q @ k.transpose(-1, -2) * head_dim**-0.5
        if self._padded:
            scores.masked_fill_(self._beyond, -torch.inf)
        attention = torch.softmax(scores, dim=-1)[..., 1:-1, 1:-1]
        if self._padded:
            attention = attention.masked_fill(self._no_residue, 0)
        symmetric = attention + attention.transpose(-1, -2)
        product = symmetric.sum(-1, keepdim=True) * symmetric.sum(-2, keepdim=True)
        product /= symmetric.sum((-1, -2), keepdim=True)
        self._sum += weights @ symmetric.sub_(product).flatten(2)

    def maps(self, bias: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of each sequence, flat."""
        assert isinstance(self._sum, torch.Tensor)
        side = max(self._lengths) - 2
        maps = torch.sigmoid(self._sum + bias).view(-1, side, side)
        for number, length in enumerate(self._lengths):
            yield maps[number, : length - 2, : length - 2].reshape(-1)


def _neighbours(lengths: np.ndarray, heads: int) -> Iterator[tuple[int, int]]:
    """Divide sequences into runs, first..last-1, that are about equally long and not too many."""
    first, shortest, longest = 0, lengths[0], lengths[0]
    for last, length in enumerate(lengths.tolist()):
        shortest, longest = min(shortest, length), max(longest, length)
        if shortest < _SHORTEST * longest or (last + 1 - first) * heads * longest**2 > max(_NUMBERS, heads * length**2):
            if last > first:
                yield first, last
            first, shortest, longest = last, length, length
    yield first, len(lengths)
