"""What ESM-C has of its own: its layer and its last norm.

ESM Team 2024, "ESM Cambrian", https://evolutionaryscale.ai/blog/esm-cambrian. Reference code: transformers 5.23,
`models/esmc/modeling_esmc.py`.
"""

import math

import torch

from esmflow.architecture import Architecture
from esmflow.model.parts import LayerNorm, Tensors, dense
from esmflow.model.rotary import Rotary, frequencies


class EsmcLayer:
    """Attention with a LayerNorm of queries and of keys, and a SwiGLU network, each behind a LayerNorm of its own.

    No dense layer has a bias.
    """

    def __init__(self, tensors: Tensors, name: str, architecture: Architecture) -> None:
        def arranged(rows: torch.Tensor) -> torch.Tensor:
            return tensors.kernels.arrange(rows, architecture.head_dim)

        def rows(which: str) -> torch.Tensor:
            return tensors.factor(f"{name}.{which}_proj.weight")

        self._heads, self._kernels = architecture.heads, tensors.kernels
        self.attention_norm = tensors.norm(f"{name}.self_attn_layer_norm")
        qkv = torch.cat([arranged(rows("self_attn.q")), arranged(rows("self_attn.k")), rows("self_attn.v")])
        self._qkv = dense((qkv, None))
        of_queries, of_keys = (tensors.take(f"{name}.self_attn.{which}_norm.weight") for which in "qk")
        self.qk_norm = LayerNorm(torch.stack([arranged(of_queries), arranged(of_keys)]), None, tensors.norm_eps)
        self._out = dense(tensors.linear(f"{name}.self_attn.out_proj", bias=False))
        self.ffn_norm = tensors.norm(f"{name}.final_layer_norm")
        self._gate_up = dense((torch.cat([rows("gate"), rows("up")]), None))
        self._down = dense(tensors.linear(f"{name}.down_proj", bias=False))

    def qkv(self, normed: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their norms and rotation: [total tokens, 3, heads, head_dim]."""
        return self._qkv(normed).view(len(normed), 3, self._heads, -1)

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        """From what attention gave, [total tokens, heads, head_dim], to [total tokens, embed_dim]."""
        return self._out(attended.flatten(1))

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        """What the feed-forward network makes of [total tokens, embed_dim]."""
        return self._down(self._kernels.gate(self._gate_up(normed)))


class Esmc(Rotary):
    """Rotary positions, whose frequencies no checkpoint holds, and ESM-C's layers.

    What each half of a layer adds to the stream is divided by the square root of a 36th of the number of layers.
    """

    def __init__(self, tensors: Tensors, architecture: Architecture) -> None:
        super().__init__(frequencies(architecture.head_dim, tensors.device))
        self.share = 1 / math.sqrt(architecture.layers / 36)
        self.layers = tensors.layers(lambda name: EsmcLayer(tensors, name, architecture), architecture.layers)
        self.norm_after = tensors.norm("emb_layer_norm_after", bias=False)
