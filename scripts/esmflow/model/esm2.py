"""What ESM-2 has of its own: rotary positions (Lin et al. 2023, doi:10.1126/science.ade2574; `esm/model/esm2.py`)."""

import torch

from esmflow.architecture import Architecture
from esmflow.model.family import Rotate
from esmflow.model.parts import Tensors, WeightAndBias


class Esm2:
    """Tokens alone make the embedding; queries and keys are turned by their positions.

    Rotary positions: Su et al. 2021, arXiv:2104.09864. The frequencies are the checkpoint's own: fair-esm's are rounded
    to fp16 and belong to the model.
    """

    def __init__(self, tensors: Tensors, architecture: Architecture, embedding: torch.Tensor) -> None:
        self._embedding = embedding
        self._head_dim = architecture.head_dim
        name = "layers.0.self_attn.rot_emb.inv_freq"
        if name in tensors:
            self._inverse_frequencies = tensors.take(name)
        else:
            exponents = torch.arange(0, self._head_dim, 2, device=tensors.device).float() / self._head_dim
            self._inverse_frequencies = 1.0 / (10000**exponents)

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Layer 0: float32 [total tokens, embed_dim]."""
        return self._embedding[tokens]

    def arrange(self, parameters: WeightAndBias) -> WeightAndBias:
        """Bring the two components of each rotary pair, which fair-esm keeps half a head apart, side by side.

        Queries and keys are permuted alike, so that their dot products stay what they were.
        """
        weight, bias = parameters
        order = torch.arange(len(bias), device=bias.device).view(-1, 2, self._head_dim // 2).transpose(1, 2).flatten()
        return weight[order], bias[order]

    def rotation(self, positions: torch.Tensor) -> Rotate:
        """What turns qkv in place: each pair of a query's or key's components by its position's angle."""
        angles = positions.float()[:, None] * self._inverse_frequencies
        turn = torch.polar(torch.ones_like(angles), angles)[:, None, None]

        def rotate(qkv: torch.Tensor) -> None:
            pairs = qkv.view(*qkv.shape[:-1], -1, 2)[:, :2]
            if qkv.dtype == torch.float32:
                torch.view_as_complex(pairs).mul_(turn)
            else:
                pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(turn)))

        return rotate
