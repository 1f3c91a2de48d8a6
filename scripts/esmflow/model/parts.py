"""What layers are built of: a checkpoint's tensors on a device, dense layers and LayerNorms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F

from esmflow.errors import DataError

WeightAndBias = tuple[torch.Tensor, torch.Tensor | None]
Dense = Callable[[torch.Tensor], torch.Tensor]
_Layer = TypeVar("_Layer")


@dataclass(frozen=True)
class LayerNorm:
    """A LayerNorm over the last dimension, in float32."""

    weight: torch.Tensor
    """[embed_dim]; of the norms of queries and keys, [2, embed_dim]."""
    bias: torch.Tensor | None
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Of float32 [n, embed_dim]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Kernels(Protocol):
    """What comes between matrix products and attention. `kernels.py` has the choice among those that there are."""

    def arrange(self, rows: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Bring the rows of queries' or keys' weights, [embed_dim, ...], into the order that `rotate` takes.

        Checkpoints have the two components of each rotary pair half a head apart.
        """

    def add_norm(
        self, x: torch.Tensor, delta: torch.Tensor, share: float, norm: LayerNorm, dtype: torch.dtype
    ) -> torch.Tensor:
        """Add `delta` times `share` to x, float32 [tokens, embed_dim], in place; returns x's norm in that dtype."""

    def turn(self, angles: torch.Tensor) -> torch.Tensor:
        """What `rotate` takes for the angles of each token's pairs, float32 [tokens, head_dim / 2]."""

    def rotate(self, qkv: torch.Tensor, turn: torch.Tensor, norm: LayerNorm | None) -> None:
        """Turn queries and keys of qkv [tokens, 3, heads, head_dim] in place, after their norms if they have such."""

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, [tokens, ffn_dim], of the two side by side."""


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors, under fair-esm's names where it has such, and where and in what they are computed."""

    tensors: Mapping[str, torch.Tensor]
    device: torch.device
    dtype: torch.dtype
    """Of matrix products; all else is float32."""
    norm_eps: float
    """What LayerNorms add to the variance."""
    kernels: Kernels
    resident: bool = True
    """Whether all layers' are on the device at the same time."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> torch.Tensor:
        """A tensor in float32 on the device. Raises DataError if there is none of that name."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise DataError(f"weights hold no tensor {name}; use weights that have it, or leave out what needs it")
        return tensor.to(device=self.device, dtype=torch.float32)

    def factor(self, name: str) -> torch.Tensor:
        """The same in what products are computed in."""
        return self.take(name).to(self.dtype)

    def pair(self, name: str, *, bias: bool = True) -> WeightAndBias:
        """Weight and, if there is to be one, bias in float32."""
        return self.take(f"{name}.weight"), self.take(f"{name}.bias") if bias else None

    def linear(self, name: str, *, bias: bool = True) -> WeightAndBias:
        """Those of a dense layer, in what products are computed in."""
        return self.factor(f"{name}.weight"), self.factor(f"{name}.bias") if bias else None

    def norm(self, name: str, *, bias: bool = True) -> LayerNorm:
        """The LayerNorm of that name."""
        return LayerNorm(*self.pair(name, bias=bias), self.norm_eps)

    def layers(self, make: Callable[[str], _Layer], count: int) -> "Layers[_Layer]":
        """Those that `make` makes of each layer's tensors, which begin with the name that it is given."""
        return Layers(make, count, resident=self.resident)

    def starting(self, *prefixes: str) -> "Tensors":
        """Those alone whose names start so."""
        kept = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefixes)}
        return replace(self, tensors=kept)


class Layers(Sequence[_Layer]):
    """A model's layers: all of them, or, of a model that is not resident, the one that was asked for last."""

    def __init__(self, make: Callable[[str], _Layer], count: int, *, resident: bool) -> None:
        self._make, self._count = make, count
        self._made = {number: make(f"layers.{number}") for number in range(count)} if resident else {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        """The layer of that number, from 0."""
        if number >= self._count:
            raise IndexError(number)
        if number not in self._made:
            # Before the other's weights come.
            self._made.clear()
            self._made[number] = self._make(f"layers.{number}")
        return self._made[number]


def dense(parameters: WeightAndBias, *, gelu: bool = False) -> Dense:
    """The function of a dense layer with this weight and bias, and of an exact GELU after it if that is asked for."""
    weight, bias = parameters
    if weight.device.type == "cpu" and _onednn_packs(weight.dtype):
        return _packed(parameters, gelu=gelu)
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _packed(parameters: WeightAndBias, *, gelu: bool) -> Dense:
    """The same by oneDNN, with weights in its own layout and GELU within the product."""
    weight, bias = parameters
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    after, algorithm = ("gelu", "none") if gelu else ("none", "")
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], algorithm)


@cache
def _onednn_packs(dtype: torch.dtype) -> bool:
    """Whether the CPU can do that in this dtype, which is tried and checked: 16 bit asks for instructions."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 64), (32, 64), (32,)))
    expected = F.gelu(F.linear(x.float(), weight.float(), bias.float()))
    try:
        product = _packed((weight, bias), gelu=True)(x).float()
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(product, expected, rtol=2**-7, atol=2**-6)
