"""From a pack to what is asked of its sequences, and from the device to the host."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from esmflow.alphabet import MASK
from esmflow.model.contacts import ContactMaps
from esmflow.model.likelihoods import Likelihoods, log_probabilities
from esmflow.model.pack import Pack, upload
from esmflow.model.trunk import Esm
from esmflow.representation import Output

#: The results of pieces: for each output a float32 array per piece, of the shape that its representation's entry
#: tells for the residues that are kept.
Pieces = dict[Output, list[np.ndarray]]


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
        return self.x[upload(self._pack.cu_seqlens[:-1].astype(np.int64), self.x.device)]

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The rows of a packed tensor that are each sequence's kept residues."""
        return [values[first:last] for first, last in self._pack.kept.tolist()]

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
    def contacts(self) -> list[torch.Tensor]:
        """For each sequence float32 [residues, residues], once the last layer is computed."""
        assert self._maps is not None
        return self._maps.maps()

    @cached_property
    def _segments(self) -> torch.Tensor:
        """Each sequence is three segments: what comes before, the kept residues, what comes after."""
        bounds = np.column_stack([self._pack.cu_seqlens[:-1], self._pack.kept]).reshape(-1)
        return upload(np.diff(bounds, append=self._pack.cu_seqlens[-1]).astype(np.int64), self.x.device)


class Represented:
    """What a pack gave, on its way from the device to the host; without a stream, it is copied when it is asked for."""

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
            output: [
                row for value in values for row in ([value.cpu().numpy()] if output.ragged else value.cpu().numpy())
            ]
            for output, values in self._tensors.items()
        }


@torch.inference_mode()
def represent(
    model: Esm, pack: Pack, outputs: Sequence[Output], stream: "torch.cuda.Stream | None" = None
) -> Represented:
    """Run a pack through the model and take what is asked for, straight from each layer's packed tensor.

    With a CUDA `stream`, results are copied to the host on it, while the device goes on with the next pack. What is
    taken at masks is not to be asked for together with anything else.
    """
    by_layer: defaultdict[int, list[Output]] = defaultdict(list)
    for output in outputs:
        by_layer[output.layer].append(output)
    maps = ContactMaps(model, pack) if any(output.kind.from_attention for output in outputs) else None
    at_masks = all(output.kind.at_masks for output in outputs)
    rows = upload(np.flatnonzero(pack.tokens == MASK), model.device) if at_masks else None
    tensors: dict[Output, list[torch.Tensor]] = {}
    for number, x in model.representations(pack, by_layer, maps.observe if maps else None, rows):
        layer = PackedLayer(x, pack, model, maps)
        for output in by_layer[number]:
            assert output.kind.take, "put together from the output of masked copies"
            values = output.kind.take(layer)
            tensors[output] = values if isinstance(values, list) else [values]
    return Represented(tensors, stream)


def _download(value: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Begin a copy to pinned memory; the device keeps the value until it is through."""
    value.record_stream(stream)
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
