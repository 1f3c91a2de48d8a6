"""fair-esm's contact head over packed sequences."""

from itertools import pairwise

import torch

from esmflow.model.pack import Pack
from esmflow.model.trunk import Esm


class ContactMaps:
    """Contact maps of a pack's sequences, summed layer by layer so that no attention map outlives its layer.

    Attention between residues is symmetrised and corrected by the average product (Dunn et al. 2008,
    doi:10.1093/bioinformatics/btm604), then goes through a logistic regression (Rao et al. 2020,
    doi:10.1101/2020.12.15.422761; `esm.modules.ContactPredictionHead`).
    """

    def __init__(self, model: Esm, pack: Pack) -> None:
        self._weights, self._bias = model.contact_regression
        self._ranges = list(pairwise(pack.cu_seqlens.tolist()))
        self._sums: list[torch.Tensor | float] = [0.0] * len(self._ranges)

    @torch.inference_mode()
    def observe(self, layer: int, qkv: torch.Tensor) -> None:
        """Add a layer's attention; qkv as it goes into attention, [total tokens, 3, heads, head_dim]."""
        for number, (begin, end) in enumerate(self._ranges):
            q, k = qkv[begin:end, :2].float().permute(1, 2, 0, 3)
            attention = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[:, 1:-1, 1:-1]
            both = attention + attention.transpose(1, 2)
            product = both.sum(-1, keepdim=True) * both.sum(-2, keepdim=True) / both.sum((-1, -2), keepdim=True)
            self._sums[number] += torch.tensordot(self._weights[layer - 1], both - product, dims=1)

    def maps(self) -> list[torch.Tensor]:
        """Once all layers were observed, for each sequence float32 [residues, residues]."""
        return [torch.sigmoid(total + self._bias) for total in self._sums]
