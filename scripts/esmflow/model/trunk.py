"""The trunk of ESM models over packed sequences.

A pack is several sequences laid end to end without padding; `cu_seqlens` holds where each begins. Everything but
attention works on single tokens; attention stays within a sequence, and positions begin anew in each.
What families have otherwise is in a file of each (`family.py` says what there is). Reference code: fair-esm 2.0,
`esm/model/esm2.py`, `esm/model/esm1.py` and `esm/modules.py`; for ESM-C see `esmc.py`.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from esmflow.alphabet import MASK
from esmflow.architecture import Architecture
from esmflow.model.attention import choose
from esmflow.model.esm1 import Esm1
from esmflow.model.esm2 import Esm2
from esmflow.model.esmc import Esmc
from esmflow.model.family import Family
from esmflow.model.kernels import choose_kernels
from esmflow.model.layouts import Checkpoint
from esmflow.model.pack import Pack, upload
from esmflow.model.parts import LayerNorm, Tensors, WeightAndBias

#: What a precision computes matrix products in.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES: dict[str, Callable[[Tensors, Architecture], Family]] = {
    "ESM-2": Esm2,
    "ESM-1b": Esm1,
    "ESM-C": Esmc,
}


@dataclass
class _Stream:
    """A pack on its way through the layers."""

    x: torch.Tensor
    """The residual stream, which the layers change in place: float32 [total tokens, embed_dim]."""
    delta: torch.Tensor | None
    """What the layer before gave, as long as it is not added to x."""
    turn: torch.Tensor | None
    lengths: list[int]
    cu_seqlens: torch.Tensor
    observe: Callable[[int, torch.Tensor], None] | None


class Esm:
    """An ESM trunk with its weights on one device.

    precision: `fp32`, or `fp16` or `bf16` for the matrix products and, but on a CPU, attention; embeddings, the
    residual stream, LayerNorms and rotary positions are float32 in any case. attention: a kernel's name or `auto`;
    kernels: the name of what computes between matrix products and attention, likewise. Without `resident`, the layers'
    weights stay where the checkpoint has them, and those of one layer at a time come to the device.
    Raises DataError for weights that lack a tensor, DeviceError for a kernel that does not work here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        *,
        precision: str = "fp32",
        attention: str = "auto",
        kernels: str = "auto",
        resident: bool = True,
    ) -> None:
        self.architecture = architecture = checkpoint.architecture
        self.device = device
        self.precision = precision
        self.resident = resident
        self._dtype = dtype = DTYPES[precision]
        # What a CPU wins by 16 bit in large products, it loses in those of attention, which are small.
        self.attention_dtype = torch.float32 if device.type == "cpu" else dtype
        self.attention, self._attend = choose(
            attention, device, self.attention_dtype, architecture.heads, architecture.head_dim
        )
        self.kernels, self._kernels = choose_kernels(kernels, device, dtype, architecture)
        tensors = Tensors(checkpoint.tensors, device, dtype, architecture.norm_eps, self._kernels, resident)
        self._embedding = tensors.take("embed_tokens.weight")
        if architecture.token_dropout:
            # Lin et al. 2023: a mask has no embedding; in training 12 % of the tokens were masks, so that the others
            # are scaled by (1 - 0.15 * 0.8) / (1 - the share of masks), of which `_embed` has the divisor.
            self._embedding = self._embedding * (1 - 0.15 * 0.8)
            self._embedding[MASK] = 0
        self._family = FAMILIES[architecture.kind](tensors, architecture)
        self._heads = tensors.starting("lm_head.", "contact_head.")

    @torch.inference_mode()
    def representations(
        self,
        pack: Pack,
        layers: Collection[int],
        observe: Callable[[int, torch.Tensor], None] | None = None,
        rows: torch.Tensor | None = None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (layer, float32 [total tokens, embed_dim]) for each layer of `layers`, in ascending order.

        Layer 0 is the embedding, the last one is after the final LayerNorm. Nothing is computed beyond the highest
        of `layers`, and a layer's tensor is the caller's only until the next is asked for. `observe` is shown, for
        each layer from 1, qkv [total tokens, 3, heads, head_dim] as it goes into attention. With `rows`, int64 [n],
        only these tokens' [n, embed_dim] are computed of the highest layer, and given.
        """
        lengths = pack.lengths.tolist()
        cu_seqlens = upload(pack.cu_seqlens, self.device)
        starts, total = cu_seqlens[:-1], len(pack.tokens)
        begun = starts.repeat_interleave(cu_seqlens.diff(), output_size=total)
        positions = torch.arange(total, device=self.device) - begun
        family, kernels = self._family, self._kernels
        x, angles = family.embed(self._embed(pack), positions), family.angles(positions)
        turn = None if angles is None else kernels.turn(angles)
        if 0 in layers:
            yield 0, x
        stream = _Stream(x, None, turn, lengths, cu_seqlens, observe)
        depth = max(layers)
        for number in range(1, depth + 1):
            stream.delta = delta = self._through(number, stream, rows if number == depth else None)
            if number == len(family.layers):
                yield number, kernels.add_norm(stream.x, delta, family.share, family.norm_after, torch.float32)
            elif number in layers:
                stream.x.add_(delta, alpha=family.share)
                stream.delta = None
                yield number, stream.x

    def _through(self, number: int, stream: "_Stream", rows: torch.Tensor | None) -> torch.Tensor:
        """Take a pack through a layer, which is held no longer than this takes; gives what is to be added to x."""
        layer, share, kernels = self._family.layers[number - 1], self._family.share, self._kernels
        x, norm, dtype = stream.x, layer.attention_norm, self._dtype
        qkv = layer.qkv(
            norm(x).to(dtype) if stream.delta is None else kernels.add_norm(x, stream.delta, share, norm, dtype)
        ).to(self.attention_dtype)
        if stream.turn is not None:
            kernels.rotate(qkv, stream.turn, layer.qk_norm)
        if stream.observe:
            stream.observe(number, qkv)
        attended = self._attend(qkv, stream.cu_seqlens, stream.lengths).to(dtype)
        if rows is not None:
            x, attended = x.index_select(0, rows), attended.index_select(0, rows)
        stream.x = x
        return layer.feed_forward(kernels.add_norm(x, layer.out(attended), share, layer.ffn_norm, dtype))

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The language model's head on the last layer: float32 [tokens, embed_dim] to [tokens, vocabulary].

        Raises DataError if the weights have no such head.
        """
        (dense, norm, last) = self._lm_head
        return F.linear(norm(F.gelu(F.linear(x, *dense))), *last)

    def _embed(self, pack: Pack) -> torch.Tensor:
        """The tokens' embedding: float32 [total tokens, embed_dim]."""
        x = F.embedding(upload(pack.tokens, self.device).int(), self._embedding)
        masks = pack.masks
        if self.architecture.token_dropout and masks.any():
            scale = np.repeat(pack.lengths / (pack.lengths - masks), pack.lengths)
            x *= upload(scale.astype(np.float32), self.device)[:, None]
        return x

    @cached_property
    def _lm_head(self) -> tuple[WeightAndBias, LayerNorm, WeightAndBias]:
        heads = self._heads
        return heads.pair("lm_head.dense"), heads.norm("lm_head.layer_norm"), heads.pair("lm_head")

    @cached_property
    def contact_regression(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [layers, heads] and bias [1] of the contact head. Raises DataError if the weights have none."""
        weight, bias = (self._heads.take(f"contact_head.regression.{part}") for part in ("weight", "bias"))
        return weight.view(self.architecture.layers, self.architecture.heads), bias
