"""What ESM-1b and ESM-1v have of their own: learned positions.

Rives et al. 2021, doi:10.1073/pnas.2016239118; Meier et al. 2021, doi:10.1101/2021.07.09.450648; `esm/model/esm1.py`.
"""

import torch
import torch.nn.functional as F

from esmflow.alphabet import PADDING
from esmflow.architecture import Architecture
from esmflow.model.fair_esm import fair_esm_layers
from esmflow.model.parts import Tensors


class Esm1:
    """fair-esm's layers; positions are added to the embedding, before a LayerNorm where the checkpoint has one."""

    share = 1.0

    def __init__(self, tensors: Tensors, architecture: Architecture) -> None:
        self._positions = tensors.take("embed_positions.weight")
        norm = "emb_layer_norm_before"
        self._norm_before = tensors.norm(norm) if f"{norm}.weight" in tensors else None
        self.layers = fair_esm_layers(tensors, architecture, rotary=False)
        self.norm_after = tensors.norm("emb_layer_norm_after")

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Layer 0: float32 [total tokens, embed_dim]. fair-esm counts positions from behind the padding's number."""
        x = x + F.embedding(positions + PADDING + 1, self._positions)
        return x if self._norm_before is None else self._norm_before(x)

    def angles(self, positions: torch.Tensor) -> None:
        """Queries and keys stay as they are."""
