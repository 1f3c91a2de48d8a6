"""What layers are built of: a checkpoint's tensors on a device, dense layers and LayerNorms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from esmflow.errors import DataError

WeightAndBias = tuple[torch.Tensor, torch.Tensor]
Dense = Callable[[torch.Tensor], torch.Tensor]

_EPS = 1e-5


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors, under fair-esm's names, and where and in what they are computed with."""

    tensors: Mapping[str, torch.Tensor]
    device: torch.device
    dtype: torch.dtype
    """Of matrix products; all else is float32."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> torch.Tensor:
        """A tensor in float32 on the device. Raises DataError if there is none of that name."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise DataError(f"weights hold no tensor {name}; use weights that have it, or leave out what needs it")
        return tensor.to(device=self.device, dtype=torch.float32)

    def pair(self, name: str) -> WeightAndBias:
        """Weight and bias in float32."""
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")

    def linear(self, name: str) -> WeightAndBias:
        """Weight and bias of a dense layer, in what products are computed in."""
        weight, bias = self.pair(name)
        return weight.to(self.dtype), bias.to(self.dtype)

    def starting(self, *prefixes: str) -> "Tensors":
        """Those alone whose names start so."""
        kept = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefixes)}
        return Tensors(kept, self.device, self.dtype)


def dense(parameters: WeightAndBias, *, gelu: bool = False) -> Dense:
    """The function of a dense layer with this weight and bias, and of an exact GELU after it if that is asked for."""
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


def layer_norm(x: torch.Tensor, parameters: WeightAndBias) -> torch.Tensor:
    """LayerNorm over the last dimension, in float32."""
    weight, bias = parameters
    return F.layer_norm(x, weight.shape, weight, bias, eps=_EPS)
