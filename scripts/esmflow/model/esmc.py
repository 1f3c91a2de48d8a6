"""What ESM-C has of its own: its layer and its last norm.

ESM Team 2024, "ESM Cambrian", https://evolutionaryscale.ai/blog/esm-cambrian. Reference code: transformers 5.23,
`models/esmc/modeling_esmc.py`.
"""

import math

import torch
import torch.nn.functional as F

from esmflow.architecture import Architecture
from esmflow.model.parts import Tensors, dense
from esmflow.model.rotary import Rotary, arrange, frequencies


class EsmcLayer:
    """Attention with a LayerNorm of queries and of keys, and a SwiGLU network, each behind a LayerNorm of its own.

    No dense layer has a bias. What each half adds to the stream is divided by the square root of a 36th of the number
    of layers.
    """

    def __init__(self, tensors: Tensors, name: str, architecture: Architecture) -> None:
        self._heads, self._dtype = architecture.heads, tensors.dtype
        self._share = 1 / math.sqrt(architecture.layers / 36)
        self._attention_norm = tensors.norm(f"{name}.self_attn_layer_norm")
        q, k, v = (tensors.factor(f"{name}.self_attn.{which}_proj.weight") for which in "qkv")
        self._qkv = dense((torch.cat([arrange(q, architecture.head_dim), arrange(k, architecture.head_dim), v]), None))
        self._qk_norms = [
            arrange(tensors.take(f"{name}.self_attn.{which}_norm.weight"), architecture.head_dim) for which in "qk"
        ]
        self._norm_eps = tensors.norm_eps
        self._out = dense(tensors.linear(f"{name}.self_attn.out_proj", bias=False))
        self._ffn_norm = tensors.norm(f"{name}.final_layer_norm")
        gate, up = (tensors.factor(f"{name}.{which}_proj.weight") for which in ("gate", "up"))
        self._gate_up = dense((torch.cat([gate, up]), None))
        self._down = dense(tensors.linear(f"{name}.down_proj", bias=False))

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their rotation: [total tokens, 3, heads, head_dim]."""
        qkv = self._qkv(self._attention_norm(x).to(self._dtype)).view(len(x), 3, -1)
        for place, weight in enumerate(self._qk_norms):
            qkv[:, place] = F.layer_norm(qkv[:, place].float(), weight.shape, weight, eps=self._norm_eps)
        return qkv.view(len(x), 3, self._heads, -1)

    def add_attended(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream with what attention gave, [total tokens, heads, head_dim]."""
        return x.add(self._out(attended.flatten(1)), alpha=self._share)

    def add_feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream with what the feed-forward network makes of it."""
        gate, up = self._gate_up(self._ffn_norm(x).to(self._dtype)).chunk(2, dim=1)
        return x.add(self._down(F.silu(gate).mul_(up)), alpha=self._share)


class Esmc(Rotary):
    """Rotary positions, whose frequencies no checkpoint holds, and ESM-C's layers."""

    def __init__(self, tensors: Tensors, architecture: Architecture) -> None:
        super().__init__(frequencies(architecture.head_dim, tensors.device))
        names = (f"layers.{number}" for number in range(architecture.layers))
        self.layers = [EsmcLayer(tensors, name, architecture) for name in names]
        self.norm_after = tensors.norm("emb_layer_norm_after", bias=False)
