"""The transformer layer that ESM-1b, ESM-1v and ESM-2 have in common (`esm.modules.TransformerLayer`)."""

import torch

from esmflow.architecture import Architecture
from esmflow.model.parts import Layers, Tensors, dense


class FairEsmLayer:
    """Attention and a feed-forward network with a GELU, each behind a LayerNorm of its own."""

    qk_norm = None

    def __init__(self, tensors: Tensors, name: str, architecture: Architecture, *, rotary: bool) -> None:
        def rows(which: str, part: str) -> torch.Tensor:
            rows = tensors.factor(f"{name}.self_attn.{which}_proj.{part}")
            return tensors.kernels.arrange(rows, architecture.head_dim) if rotary and which != "v" else rows

        self._heads = architecture.heads
        self.attention_norm = tensors.norm(f"{name}.self_attn_layer_norm")
        weight, bias = (torch.cat([rows(which, part) for which in "qkv"]) for part in ("weight", "bias"))
        self._qkv = dense((weight, bias))
        self._out = dense(tensors.linear(f"{name}.self_attn.out_proj"))
        self.ffn_norm = tensors.norm(f"{name}.final_layer_norm")
        self._fc1_gelu = dense(tensors.linear(f"{name}.fc1"), gelu=True)
        self._fc2 = dense(tensors.linear(f"{name}.fc2"))

    def qkv(self, normed: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, before their rotation: [total tokens, 3, heads, head_dim]."""
        return self._qkv(normed).view(len(normed), 3, self._heads, -1)

    def out(self, attended: torch.Tensor) -> torch.Tensor:
        """From what attention gave, [total tokens, heads, head_dim], to [total tokens, embed_dim]."""
        return self._out(attended.flatten(1))

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        """What the feed-forward network makes of [total tokens, embed_dim]."""
        return self._fc2(self._fc1_gelu(normed))


def fair_esm_layers(tensors: Tensors, architecture: Architecture, *, rotary: bool) -> Layers[FairEsmLayer]:
    """All layers of a model, in order. rotary: whether queries and keys are turned by their positions."""
    return tensors.layers(lambda name: FairEsmLayer(tensors, name, architecture, rotary=rotary), architecture.layers)
