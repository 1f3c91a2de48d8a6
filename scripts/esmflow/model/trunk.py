"""The trunk of ESM-2, ESM-1b and ESM-1v over packed sequences.

A pack is several sequences laid end to end without padding; `cu_seqlens` holds where each begins. Everything but
attention works on single tokens; attention stays within a sequence, and positions begin anew in each.
ESM-2: Lin et al. 2023, doi:10.1126/science.ade2574. ESM-1b: Rives et al. 2021, doi:10.1073/pnas.2016239118.
Reference code: fair-esm 2.0, `esm/model/esm2.py` and `esm/model/esm1.py`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from esmflow.errors import DataError
from esmflow.model.attention import choose
from esmflow.model.weights import Checkpoint

#: fair-esm's alphabet, in the order of its token numbers (`esm.data.Alphabet`, architecture ESM-1b).
ALPHABET = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
BOS, PADDING, EOS = ALPHABET.index("<cls>"), ALPHABET.index("<pad>"), ALPHABET.index("<eos>")
_TOKENS = np.full(256, ALPHABET.index("<unk>"), dtype=np.int64)
_TOKENS[[ord(letter) for letter in ALPHABET if len(letter) == 1]] = [
    number for number, letter in enumerate(ALPHABET) if len(letter) == 1
]
_EPS = 1e-5
#: What a precision computes matrix products in.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
        """Tokenise and concatenate sequences of upper-case residue letters.

        `kept` has the first residue of each that is pooled, and the one after the last; without it, all are.
        """
        letters = np.frombuffer(b"".join(b"<" + residues + b">" for residues in sequences), dtype=np.uint8)
        tokens = _TOKENS[letters]
        ends = np.cumsum([len(residues) + 2 for residues in sequences])
        tokens[ends - 1] = EOS
        tokens[np.concatenate([[0], ends[:-1]])] = BOS
        cu_seqlens = np.concatenate([[0], ends])
        ranges = np.array(kept or [(0, len(residues)) for residues in sequences]) + cu_seqlens[:-1, None] + 1
        return cls(tokens, cu_seqlens.astype(np.int32), ranges)


_Pair = tuple[torch.Tensor, torch.Tensor]
_Dense = Callable[[torch.Tensor], torch.Tensor]


def _dense(parameters: _Pair, *, gelu: bool = False) -> _Dense:
    """The function of a dense layer with this weight and bias, and of an exact GELU after it where that is wanted."""
    weight, bias = parameters
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if onednn and weight.device.type == "cpu" and weight.dtype == torch.float32:
        # oneDNN, with weights in its own layout and GELU within the product: a tenth faster than F.linear.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        after, algorithm = ("gelu", "none") if gelu else ("none", "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], algorithm)
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Pair
    qkv: _Dense
    out: _Dense
    ffn_norm: _Pair
    fc1_gelu: _Dense
    fc2: _Dense


class Esm:
    """An ESM trunk with its weights on one device.

    precision: `fp32`, or `fp16` or `bf16` for the matrix products and attention; embeddings, the residual stream,
    LayerNorms and rotary positions are float32 in any case. attention: a kernel's name or `auto`.
    Raises DataError for weights that lack a tensor, DeviceError for a kernel that does not work here.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, *, precision: str = "fp32", attention: str = "auto"
    ) -> None:
        self.architecture = checkpoint.architecture
        self.device = device
        self.precision = precision
        self._dtype = DTYPES[precision]
        self._tensors = checkpoint.tensors
        shape = self.architecture
        self._head_dim = shape.embed_dim // shape.heads
        self._rotary = shape.kind == "ESM-2"
        self.attention, self._attend = choose(attention, device, self._dtype, shape.heads, self._head_dim)

        # Token dropout (Lin et al. 2023): trained with 12 % of the tokens masked, so that inputs without masks
        # are scaled by 1 - 0.15 * 0.8. No mask token is ever put in, hence the scale is constant.
        scale = 1 - 0.15 * 0.8 if shape.token_dropout else 1.0
        self._embedding = self._take("embed_tokens.weight") * scale
        self._norm_after = self._pair("emb_layer_norm_after")
        if self._rotary:
            self._inverse_frequencies = self._rotary_frequencies()
        else:
            self._positions = self._take("embed_positions.weight")
            has_norm = "emb_layer_norm_before.weight" in self._tensors
            self._norm_before = self._pair("emb_layer_norm_before") if has_norm else None
        self._layers = [self._layer(f"layers.{number}") for number in range(shape.layers)]
        heads = ("lm_head.", "contact_head.")
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if name.startswith(heads)}

    @torch.inference_mode()
    def representations(
        self, pack: Pack, layers: Collection[int], observe: Callable[[int, torch.Tensor], None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (layer, float32 [total tokens, embed_dim]) for each wanted layer, in ascending order.

        Layer 0 is the embedding, the last one is after the final LayerNorm. Nothing is computed beyond the highest
        wanted layer, and a layer's tensor is the caller's only until the next is asked for. `observe` is shown, for
        each layer from 1, qkv [total tokens, 3, heads, head_dim] as it goes into attention.
        """
        shape = self.architecture
        starts, lengths = pack.cu_seqlens[:-1], np.diff(pack.cu_seqlens)
        cu_seqlens = upload(pack.cu_seqlens, self.device)
        x = self._embedding[upload(pack.tokens, self.device)]
        position = upload(np.arange(len(pack.tokens)) - np.repeat(starts, lengths), self.device)
        if self._rotary:
            angles = position.float()[:, None] * self._inverse_frequencies
            rotation = torch.polar(torch.ones_like(angles), angles)[:, None, None]
        else:
            x = x + self._positions[position + PADDING + 1]
            if self._norm_before is not None:
                x = self._norm(x, self._norm_before)
        if 0 in layers:
            yield 0, x
        for number, layer in enumerate(self._layers[: max(layers)], 1):
            qkv = layer.qkv(self._norm(x, layer.attention_norm).to(self._dtype))
            qkv = qkv.view(len(x), 3, shape.heads, self._head_dim)
            if self._rotary:
                # Rotary positions (Su et al. 2021, arXiv:2104.09864): each pair of a query's or key's
                # components is a complex number that turns by its position's angle.
                pairs = qkv.view(*qkv.shape[:-1], -1, 2)[:, :2]
                if self._dtype == torch.float32:
                    torch.view_as_complex(pairs).mul_(rotation)
                else:
                    pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(rotation)))
            if observe:
                observe(number, qkv)
            x = x + layer.out(self._attend(qkv, cu_seqlens, lengths.tolist()).flatten(1))
            x = x + layer.fc2(layer.fc1_gelu(self._norm(x, layer.ffn_norm).to(self._dtype)))
            if number in layers:
                yield number, x if number < shape.layers else self._norm(x, self._norm_after)

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The language model's head on the last layer: float32 [tokens, embed_dim] to [tokens, 33].

        Raises DataError if the weights have no such head.
        """
        x = F.gelu(F.linear(x, *self._pair("lm_head.dense")))
        x = self._norm(x, self._pair("lm_head.layer_norm"))
        return F.linear(x, self._take("lm_head.weight"), self._take("lm_head.bias"))

    @property
    def contact_regression(self) -> _Pair:
        """Weights [layers, heads] and bias [1] of the contact head. Raises DataError if the weights have none."""
        weight, bias = self._pair("contact_head.regression")
        return weight.view(self.architecture.layers, self.architecture.heads), bias

    def _norm(self, x: torch.Tensor, parameters: _Pair) -> torch.Tensor:
        return F.layer_norm(x, (self.architecture.embed_dim,), *parameters, eps=_EPS)

    def _take(self, name: str) -> torch.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise DataError(f"weights hold no tensor {name}; use weights that have it, or ask for what needs it not")
        return tensor.to(device=self.device, dtype=torch.float32)

    def _linear(self, name: str) -> _Pair:
        return self._take(f"{name}.weight").to(self._dtype), self._take(f"{name}.bias").to(self._dtype)

    def _pair(self, name: str) -> _Pair:
        return self._take(f"{name}.weight"), self._take(f"{name}.bias")

    def _rotary_frequencies(self) -> torch.Tensor:
        """The frequencies of the checkpoint (fair-esm's are rounded to fp16 and belong to the model)."""
        name = "layers.0.self_attn.rot_emb.inv_freq"
        if name in self._tensors:
            return self._take(name)
        exponents = torch.arange(0, self._head_dim, 2, device=self.device).float() / self._head_dim
        return 1.0 / (10000**exponents)

    def _layer(self, name: str) -> _Layer:
        q, k, v = (self._linear(f"{name}.self_attn.{which}_proj") for which in "qkv")
        if self._rotary:
            q, k = self._interleave(q), self._interleave(k)
        return _Layer(
            attention_norm=self._pair(f"{name}.self_attn_layer_norm"),
            qkv=_dense((torch.cat([q[0], k[0], v[0]]), torch.cat([q[1], k[1], v[1]]))),
            out=_dense(self._linear(f"{name}.self_attn.out_proj")),
            ffn_norm=self._pair(f"{name}.final_layer_norm"),
            fc1_gelu=_dense(self._linear(f"{name}.fc1"), gelu=True),
            fc2=_dense(self._linear(f"{name}.fc2")),
        )

    def _interleave(self, linear: _Pair) -> _Pair:
        """Bring the two components of each rotary pair, which fair-esm keeps half a head apart, side by side.

        Queries and keys are permuted alike, so that their dot products stay what they were.
        """
        order = torch.arange(self.architecture.embed_dim, device=self.device).view(-1, 2, self._head_dim // 2)
        order = order.transpose(1, 2).flatten()
        return linear[0][order], linear[1][order]


def upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of these values on the device; a GPU takes them from pinned memory, and the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
