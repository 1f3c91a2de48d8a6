"""Attention by other libraries' functions, each called by the names of what it takes, tried and checked before use."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from esmflow.errors import DeviceError
from esmflow.model import attention
from esmflow.model.attention import KERNELS, choose

CPU = torch.device("cpu")
#: FlashAttention is no package for a CPU. These have the names and places of arguments, and the results, of each
#: version; 4 gives the logarithms of the sums besides.
BODY = """
import torch
def flash_attn_varlen_func({arguments}, softmax_scale=None):
    parts = []
    for first, last in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:]):
        q_, k_, v_ = (x[first:last].transpose(0, 1) for x in (q, k, v))
        scores = torch.softmax(q_ @ k_.transpose(1, 2) * q_.shape[-1] ** -0.5, dim=-1)
        parts.append(({flaw} * (scores @ v_)).transpose(0, 1))
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_k.diff().max())
    return {result}
"""
OF_2 = "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"
OF_4 = "q, k, v, *, max_seqlen_q=None, max_seqlen_k=None, cu_seqlens_q=None, cu_seqlens_k=None"
VERSIONS = {
    "flash_attn": ("flash_attn/__init__.py", OF_2, "torch.cat(parts)"),
    "flash_attn_3": ("flash_attn_interface.py", OF_2, "torch.cat(parts)"),
    "flash_attn_4": ("flash_attn/cute/__init__.py", OF_4, "torch.cat(parts), None"),
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a version of FlashAttention where it is imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    before = forget_flash_attention()

    def put(name: str, flaw: str = "1") -> None:
        file, arguments, result = VERSIONS[name]
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(BODY.format(arguments=arguments, result=result, flaw=flaw))

    yield put
    forget_flash_attention()
    sys.modules.update(before)


def forget_flash_attention() -> dict[str, ModuleType]:
    """Take what is imported of it out of the list of modules."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("flash_attn")}


@pytest.mark.parametrize("name", VERSIONS)
def test_each_version_is_called_by_the_names_that_it_has(install: Install, name: str) -> None:
    install(name)
    assert choose(name, CPU, torch.float32, 4, 16) == (name, KERNELS[name])


def test_a_version_that_gives_other_numbers_is_not_used(install: Install) -> None:
    install("flash_attn_3", flaw="1.2")
    with pytest.raises(DeviceError, match=r"flash_attn_3 does not work on cpu .*differs from the plain kernel"):
        choose("flash_attn_3", CPU, torch.float32, 4, 16)


def test_where_version_4_alone_is_installed_version_2_is_not_taken_to_be_there(install: Install) -> None:
    install("flash_attn_4")
    with pytest.raises(DeviceError, match="flash_attn does not work"):
        choose("flash_attn", CPU, torch.float32, 4, 16)


def test_auto_takes_the_first_that_works(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, by a device that bears another name than the CPU's."""
    install("flash_attn")
    install("flash_attn_4", flaw="1.2")
    tried = attention._try

    def on_the_cpu(kernel: attention.Attention, device: torch.device, *shape: object) -> None:
        tried(kernel, CPU, *shape)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_try", on_the_cpu)
    assert choose("auto", torch.device("cuda"), torch.float32, 4, 16)[0] == "flash_attn"
