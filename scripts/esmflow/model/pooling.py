"""From packs to what is asked of their sequences, and from the device to the host."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from esmflow.alphabet import MASK
from esmflow.architecture import Architecture
from esmflow.model.contacts import ContactMaps
from esmflow.model.likelihoods import Likelihoods, log_probabilities
from esmflow.model.pack import Pack, upload
from esmflow.model.trunk import Esm
from esmflow.representation import Output, Values


class Results(NamedTuple):
    """What packs gave, sequence by sequence."""

    values: dict[Output, Values]
    """Of vectors, arrays that are to be copied: they may lie in memory that the next packs could have."""
    finite: np.ndarray
    """bool [sequences]."""


class PackedLayer:
    """A layer of a pack, and what representations are taken from it. Pooling is over the residues that the pack keeps.

    x: float32 [total tokens, embed_dim]; for what is taken at masks, theirs alone.
    """

    x: torch.Tensor

    def __init__(self, x: torch.Tensor, pack: Pack, model: Esm | None = None, maps: ContactMaps | None = None) -> None:
        self.x = x
        self._pack, self._model, self._maps = pack, model, maps

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """`mean`, `max` or `sum` of a packed tensor [total tokens, n] over each sequence's kept residues."""
        return torch.segment_reduce(values, how, lengths=self._segments, unsafe=True)[1::3]

    @cached_property
    def mean(self) -> torch.Tensor:
        """float32 [sequences, embed_dim]."""
        return self.reduce(self.x, "mean")

    @cached_property
    def std(self) -> torch.Tensor:
        """The population standard deviation: float32 [sequences, embed_dim]."""
        lengths = upload(self._pack.lengths.astype(np.int64), self.x.device)
        centred = self.x - self.mean.repeat_interleave(lengths, dim=0, output_size=len(self.x))
        # The second term is what rounding of the mean adds to the first (Chan et al. 1983, eq. 1.7).
        variance = self.reduce(centred.square(), "mean") - self.reduce(centred, "mean").square()
        return variance.clamp_(min=0).sqrt_()

    @property
    def bos(self) -> torch.Tensor:
        """The vectors of the BOS tokens: float32 [sequences, embed_dim]."""
        return self.x.index_select(0, upload(self._pack.cu_seqlens[:-1].astype(np.int64), self.x.device))

    def residues(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of a packed tensor that are kept residues: a copy, [kept residues, ...]."""
        return values.index_select(0, self._kept)

    @cached_property
    def logits(self) -> torch.Tensor:
        """float32 [total tokens, vocabulary], of the last layer. Raises DataError if the weights have no such head."""
        assert self._model is not None
        return self._model.logits(self.x)

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """What the last layer says of the tokens. Raises DataError if the weights have no head for it."""
        return Likelihoods(self.logits, upload(self._pack.tokens, self.x.device))

    @property
    def at_masks(self) -> torch.Tensor:
        """log p of the 20 amino acids at the mask that each sequence has, by the last layer: float32 [sequences, 20].

        Raises DataError if the weights have no head for it.
        """
        return log_probabilities(self.logits).float()

    @property
    def contacts(self) -> torch.Tensor:
        """Once the last layer is computed: float32 [sum of residues x residues], one map behind the other."""
        assert self._maps is not None
        return self._maps.maps()

    @cached_property
    def _kept(self) -> torch.Tensor:
        """The tokens that are kept residues: int64 [kept residues]."""
        firsts, lasts = self._pack.kept.T
        counts = lasts - firsts
        before = np.repeat(firsts - (counts.cumsum() - counts), counts)
        return upload(np.arange(counts.sum()) + before, self.x.device)

    @cached_property
    def _segments(self) -> torch.Tensor:
        """Each sequence is three segments: what comes before, the kept residues, what comes after."""
        bounds = np.column_stack([self._pack.cu_seqlens[:-1], self._pack.kept]).reshape(-1)
        return upload(np.diff(bounds, append=self._pack.cu_seqlens[-1]).astype(np.int64), self.x.device)


class Represented:
    """What packs gave, on its way from the device to the host; without a stream, it is copied when it is asked for.

    tensors: for each output the packs' values, end to end; kept: the residues that each sequence keeps.
    """

    def __init__(
        self,
        tensors: Mapping[Output, torch.Tensor],
        kept: np.ndarray,
        architecture: Architecture,
        stream: "torch.cuda.Stream | None" = None,
    ) -> None:
        self.tensors, self._kept, self._architecture = dict(tensors), kept, architecture
        # The sum of numbers that are all finite nearly always is, and any other never.
        self._sums = torch.stack([value.sum() for value in tensors.values()])
        self._arrived = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                self.tensors = {output: _download(value, stream) for output, value in tensors.items()}
                self._sums = _download(self._sums, stream)
                self._arrived = stream.record_event()

    def get(self) -> Results:
        """Wait for the copies and give them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: dict[Output, Values] = {}
        finite = np.ones(len(self._kept), dtype=bool)
        *arrays, sums = [tensor.cpu().numpy() for tensor in (*self.tensors.values(), self._sums)]
        for output, array, total in zip(self.tensors, arrays, sums, strict=True):
            # What stays in pinned memory would keep more of it from the next pack than it fills.
            values[output] = self._split(output, array.copy()) if output.ragged else array
            if not np.isfinite(total):
                finite &= [bool(np.isfinite(value).all()) for value in values[output]]
        return Results(values, finite)

    def _split(self, output: Output, array: np.ndarray) -> list[np.ndarray]:
        """The value of each sequence, as a view."""
        shapes = [output.kind.shape(residues, self._architecture) for residues in self._kept.tolist()]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(array.reshape(-1), ends[:-1]), shapes, strict=True)]


@torch.inference_mode()
def represent(
    model: Esm, packs: Sequence[Pack], outputs: Sequence[Output], stream: "torch.cuda.Stream | None" = None
) -> Represented:
    """Run packs through the model and take what is asked for, straight from each layer's packed tensor.

    Several packs go side by side, one layer of the model after the other, for which each layer's weights are fetched
    once if they are not on the device. With a CUDA `stream`, results are copied to the host on it, while the device
    goes on with the next packs. What is taken at masks is not to be asked for together with anything else.
    """
    by_layer: defaultdict[int, list[Output]] = defaultdict(list)
    for output in outputs:
        by_layer[output.layer].append(output)
    layers = by_layer if len(packs) == 1 else range(max(by_layer) + 1)
    taken: dict[Output, list[torch.Tensor]] = {output: [] for output in outputs}
    for together in zip(*(_layers(model, pack, layers, outputs) for pack in packs), strict=True):
        for number, layer in together:
            for output in by_layer.get(number, []):
                assert output.kind.take, "put together from the output of masked copies"
                taken[output].append(output.kind.take(layer))
    tensors = {output: torch.cat(values) if len(values) > 1 else values[0] for output, values in taken.items()}
    kept = np.concatenate([np.diff(pack.kept)[:, 0] for pack in packs])
    return Represented(tensors, kept, model.architecture, stream)


def _layers(
    model: Esm, pack: Pack, layers: Collection[int], outputs: Sequence[Output]
) -> Iterator[tuple[int, PackedLayer]]:
    """Those layers of a pack, each the caller's until the next is asked for."""
    maps = ContactMaps(model, pack) if any(output.kind.from_attention for output in outputs) else None
    at_masks = all(output.kind.at_masks for output in outputs)
    rows = upload(np.flatnonzero(pack.tokens == MASK), model.device) if at_masks else None
    for number, x in model.representations(pack, layers, maps.observe if maps else None, rows):
        yield number, PackedLayer(x, pack, model, maps)


def _download(value: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Begin a copy to pinned memory; the device keeps the value until it is through."""
    value.record_stream(stream)
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
