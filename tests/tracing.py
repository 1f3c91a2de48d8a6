"""The forward pass on a GPU that is not there: tensors without content tell their device, and what kernels move."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from esmflow.architecture import Architecture
from esmflow.model import contacts, kernels, pooling, trunk
from esmflow.model.layouts import Checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
#: What moves nothing.
VIEWS = re.compile(
    "view|_unsafe_view|slice|select|unsqueeze|squeeze|t|transpose|permute|split|unbind|chunk|view_as_complex|view_as_real"
    "|alias|detach|expand|flatten|reshape|_reshape_alias|empty.*"
)


class _Indexing(TorchFunctionMode):
    """x[...] by operators: PyTorch's own begins by asking the driver for the device."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return _index(*arguments)
        if function is torch.Tensor.__setitem__:
            place, value = _index(*arguments[:2]), arguments[2]
            return aten.copy_(place, value) if isinstance(value, torch.Tensor) else place.fill_(value)
        if function is torch.Tensor.copy_:
            return aten.copy_(*arguments)
        return function(*arguments, **(options or {}))


def _index(x: torch.Tensor, indices: Any) -> torch.Tensor:
    axis = 0
    for index in indices if isinstance(indices, tuple) else (indices,):
        if index is Ellipsis:
            axis = x.ndim - (len(indices) - 1 - indices.index(Ellipsis))
        elif index is None:
            x, axis = x.unsqueeze(axis), axis + 1
        elif isinstance(index, slice):
            if index != slice(None):
                x = aten.slice(x, axis, index.start, index.stop, index.step or 1)
            axis += 1
        elif isinstance(index, int):
            x = x.select(axis, index)
        else:
            chosen = index if isinstance(index, torch.Tensor) else torch.tensor(index, device=x.device)
            x, axis = x.index_select(axis, chosen), axis + 1
    return x


@contextmanager
def on_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors on CUDA have all but their numbers, so that nothing can be compared and no memory is pinned."""

    def upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    for module in (contacts, pooling, trunk):
        monkeypatch.setattr(module, "upload", upload)
    monkeypatch.setattr(kernels, "check", lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True), _Indexing():
        yield


def without_content(checkpoint: Checkpoint) -> Checkpoint:
    """The same shapes; to be called within `on_a_gpu_that_is_not_there`."""
    return replace(checkpoint, tensors={name: torch.empty(x.shape) for name, x in checkpoint.tensors.items()})


def empty_checkpoint(shape: Architecture) -> Checkpoint:
    """A trunk of that shape; to be called within `on_a_gpu_that_is_not_there`."""
    dim, ffn, swiglu = shape.embed_dim, shape.ffn_dim, shape.kind == "ESM-C"
    matrices = {f"self_attn.{which}_proj": (dim, dim) for which in ("q", "k", "v", "out")}
    if swiglu:
        matrices |= {"gate_proj": (ffn, dim), "up_proj": (ffn, dim), "down_proj": (dim, ffn)}
    else:
        matrices |= {"fc1": (ffn, dim), "fc2": (dim, ffn)}
    norms = ["self_attn_layer_norm", "final_layer_norm"] + swiglu * ["self_attn.q_norm", "self_attn.k_norm"]
    sizes: dict[str, tuple[int, ...]] = {"embed_tokens": (shape.vocabulary, dim), "emb_layer_norm_after": (dim,)}
    for layer in range(shape.layers):
        sizes |= {f"layers.{layer}.{name}": size for name, size in (matrices | dict.fromkeys(norms, (dim,))).items()}
    tensors = {f"{name}.weight": torch.empty(size) for name, size in sizes.items()}
    tensors |= {f"{name}.bias": torch.empty(size[0]) for name, size in sizes.items()}
    tensors["layers.0.self_attn.rot_emb.inv_freq"] = torch.empty(shape.head_dim // 2)
    if shape.max_residues:
        tensors["embed_positions.weight"] = torch.empty(shape.max_residues + 4, dim)
    return Checkpoint(shape, tensors)


class Traffic(TorchDispatchMode):
    """Counts the kernels that run, and the bytes that each reads and writes of tensors of so many numbers at least."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.kernels: list[tuple[str, int]] = []
        self._least = least

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        name = function.name().split("::")[1].split(".")[0]
        inputs = {option: x for option, x in (options or {}).items() if option != "out"}
        read = [self._bytes(x) for x in tree_leaves((arguments, inputs)) if isinstance(x, torch.Tensor)]
        written = [self._bytes(x) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if name == "rotate":
            # In place, of queries and keys, which are two thirds of what it is given.
            read = written = [read[0] * 2 // 3]
        elif name == "add_norm":
            written = [read[0], *written]
        elif name == "copy_":
            read, written = read[1:], read[:1]
        unchanged = name == "to" and result is arguments[0]
        if not VIEWS.fullmatch(name) and not unchanged and sum(read + written):
            self.kernels.append((name, sum(read + written)))
        return result

    def _bytes(self, x: torch.Tensor) -> int:
        numbers = x.numel() * (2 if x.is_complex() else 1)
        return x.element_size() * x.numel() if numbers >= self._least else 0
