"""From a pack to what is asked of its sequences: pooled vectors, residues, logits and contacts."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from esmflow.model.trunk import Esm, Pack, upload
from esmflow.spec import VECTORS, Output

#: The results of pieces: for each a float32 array, [embed_dim] for vectors, [kept residues, embed_dim] for `per_tok`,
#: [kept residues, 33] for `logits` and [residues, residues] for `contacts`.
Pieces = dict[Output, list[np.ndarray]]


class Represented:
    """What a pack gave, on its way from the device to the host."""

    def __init__(self, tensors: dict[Output, list[torch.Tensor]], stream: "torch.cuda.Stream | None" = None) -> None:
        self._arrived = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                tensors = {output: [_download(value, stream) for value in values] for output, values in tensors.items()}
                self._arrived = stream.record_event()
        self._tensors = tensors

    def get(self) -> Pieces:
        """Wait for the copies and give them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {
            output: [row for value in values for row in _rows(output, value)]
            for output, values in self._tensors.items()
        }


def represent(
    model: Esm, pack: Pack, outputs: Sequence[Output], stream: "torch.cuda.Stream | None" = None
) -> Represented:
    """Run a pack through the model and take what is asked for, straight from each layer's packed tensor.

    With a CUDA `stream`, results are copied to the host on it, while the device goes on with the next pack.
    """
    wanted = {layer: [o for o in outputs if o.layer == layer] for layer in {output.layer for output in outputs}}
    contacts = _Contacts(model, pack) if any(output.representation == "contacts" for output in outputs) else None
    result: dict[Output, list[torch.Tensor]] = {}
    for layer, x in model.representations(pack, wanted, contacts.observe if contacts else None):
        pooled = pool(x, pack, [output.representation for output in wanted[layer]])
        for output in wanted[layer]:
            if output.representation in VECTORS:
                result[output] = [pooled[output.representation]]
            elif output.representation == "per_tok":
                result[output] = _split(x, pack)
            elif output.representation == "logits":
                result[output] = _split(model.logits(x), pack)
            elif contacts:
                result[output] = contacts.maps()
    return Represented(result, stream)


@torch.inference_mode()
def pool(x: torch.Tensor, pack: Pack, representations: Sequence[str]) -> dict[str, torch.Tensor]:
    """Pool a packed representation to one vector per sequence, by segment reduction.

    x: float32 [total tokens, embed_dim]. Returns float32 [sequences, embed_dim] for each of `mean`, `max`, `std`
    (population standard deviation) over the residues that the pack keeps, and `bos` (the vector of the BOS token).
    """
    begins, ends = pack.cu_seqlens[:-1], pack.cu_seqlens[1:]
    # Each sequence is three segments: what comes before, the kept residues, what comes after. The middle is wanted.
    bounds = np.column_stack([begins, pack.kept]).reshape(-1)
    segments = upload(np.diff(bounds, append=ends[-1]).astype(np.int64), x.device)

    def reduce(values: torch.Tensor, how: str) -> torch.Tensor:
        return torch.segment_reduce(values, how, lengths=segments, unsafe=True)[1::3]

    result = {}
    if "bos" in representations:
        result["bos"] = x[upload(begins.astype(np.int64), x.device)]
    if "max" in representations:
        result["max"] = reduce(x, "max")
    if "mean" in representations or "std" in representations:
        mean = result["mean"] = reduce(x, "mean")
        if "std" in representations:
            lengths = upload((ends - begins).astype(np.int64), x.device)
            centred = x - mean.repeat_interleave(lengths, dim=0, output_size=len(x))
            # The second term is what rounding of the mean adds to the first (Chan et al. 1983, eq. 1.7).
            variance = reduce(centred.square(), "mean") - reduce(centred, "mean").square()
            result["std"] = variance.clamp_(min=0).sqrt_()
    return result


def combine(
    output: Output, parts: Sequence[np.ndarray], means: Sequence[np.ndarray], kept: Sequence[int]
) -> np.ndarray:
    """What a sequence has from what its pieces have, as if all kept residues had been together; bos is averaged.

    means: the pieces' `mean`, which is needed for `std`; kept: how many residues each piece keeps.
    """
    if len(parts) == 1:
        return parts[0]
    if output.ragged:
        return np.concatenate(parts)
    values = np.array(parts, dtype=np.float64)
    weights = np.array(kept)[:, None] / sum(kept)
    if output.representation == "max":
        pooled = values.max(axis=0)
    elif output.representation == "bos":
        pooled = values.mean(axis=0)
    elif output.representation == "mean":
        pooled = (weights * values).sum(axis=0)
    else:
        between = np.array(means, dtype=np.float64)
        between -= (weights * between).sum(axis=0)
        pooled = np.sqrt((weights * (values**2 + between**2)).sum(axis=0))
    result: np.ndarray = pooled.astype(np.float32)
    return result


def _split(x: torch.Tensor, pack: Pack) -> list[torch.Tensor]:
    """The rows of each sequence's kept residues."""
    return [x[first:last] for first, last in pack.kept.tolist()]


def _rows(output: Output, value: torch.Tensor) -> list[np.ndarray]:
    return [value.numpy()] if output.ragged else list(value.numpy())


def _download(value: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Begin a copy to pinned memory; the device keeps the value until it is through."""
    value.record_stream(stream)
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


class _Contacts:
    """fair-esm's contact head, summed layer by layer so that no attention map outlives its layer.

    Attention between residues is symmetrised and corrected by the average product (Dunn et al. 2008,
    doi:10.1093/bioinformatics/btm604), then goes through a logistic regression (Rao et al. 2020,
    doi:10.1101/2020.12.15.422761; `esm.modules.ContactPredictionHead`).
    """

    def __init__(self, model: Esm, pack: Pack) -> None:
        self._weights, self._bias = model.contact_regression
        self._ranges = list(pairwise(pack.cu_seqlens.tolist()))
        self._sums: list[torch.Tensor | float] = [0.0] * len(self._ranges)

    @torch.inference_mode()
    def observe(self, layer: int, qkv: torch.Tensor) -> None:
        for number, (begin, end) in enumerate(self._ranges):
            q, k = qkv[begin:end, :2].float().permute(1, 2, 0, 3)
            attention = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[:, 1:-1, 1:-1]
            both = attention + attention.transpose(1, 2)
            product = both.sum(-1, keepdim=True) * both.sum(-2, keepdim=True) / both.sum((-1, -2), keepdim=True)
            self._sums[number] += torch.tensordot(self._weights[layer - 1], both - product, dims=1)

    def maps(self) -> list[torch.Tensor]:
        return [torch.sigmoid(total + self._bias) for total in self._sums]
