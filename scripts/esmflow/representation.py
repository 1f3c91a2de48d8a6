"""Representations: what is computed of a protein. One entry tells all that the library knows of each.

`REPRESENTATIONS` is the table. Config, rules, store, tables and exports ask its entries; only what is made of the
likelihoods knows its own by name.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from esmflow.alphabet import AMINO_ACIDS
from esmflow.architecture import Architecture

if TYPE_CHECKING:
    import torch

    from esmflow.model.pooling import PackedLayer


#: The values of an output for some proteins: of vectors one float32 array [proteins, width], else an array for each.
Values = np.ndarray | list[np.ndarray]
#: The file stem of what is made of the values that a sheet of variants needs.
VARIANTS = "variants"


@dataclass(frozen=True)
class PieceVectors:
    """What the pieces of a long protein have, to be made one vector as if all kept residues had been together."""

    vectors: np.ndarray
    """float64 [pieces, embed_dim], of the representation itself."""
    weights: np.ndarray
    """float64 [pieces, 1]: the share of the kept residues that each piece has."""
    means: np.ndarray
    """float64 [pieces, embed_dim]: their `mean`; empty unless the representation `needs_mean`."""

    def average(self, vectors: np.ndarray) -> np.ndarray:
        """The pieces' vectors, weighed by their residues: float64 [embed_dim]."""
        average: np.ndarray = (self.weights * vectors).sum(axis=0)
        return average


@dataclass(frozen=True)
class Vector:
    """A representation of which a protein has one vector, whatever its length."""

    name: str
    take: Callable[["PackedLayer"], "torch.Tensor"]
    """From a layer of a pack: float32 [sequences, width]."""
    combine: Callable[[PieceVectors], np.ndarray]
    """From the pieces of a long protein: [width]."""
    needs_mean: bool = False
    """Whether `combine` needs the pieces' means besides."""
    table: str = "features"
    """The tables that its values are for: `features`, `likelihoods`; empty for what is not to be asked for."""
    serves: tuple[str, ...] = ()
    """What is made of its values, if not what has its own name."""
    of_last_layer: bool = False
    layer_in_name: bool = True
    at_masks: bool = False
    """Whether it is taken of masks alone, so that of the last layer nothing else is computed."""
    in_float16: bool = True
    """Whether `vectors: float16` is of it; not of logarithms, of which sums and differences are what is wanted."""
    width: Callable[[Architecture], int] = lambda architecture: architecture.embed_dim
    head: Callable[[Architecture], bool] = lambda _: True

    ragged: ClassVar[bool] = False
    from_copies: ClassVar[bool] = False
    in_windows: ClassVar[bool] = True
    from_attention: ClassVar[bool] = False

    def shape(self, residues: Any, architecture: Architecture) -> tuple[Any, ...]:  # noqa: ARG002
        """Of the value of a protein of so many kept residues, or of several, if `residues` is an array of int64."""
        return (self.width(architecture),)

    def has_head(self, architecture: Architecture) -> bool:
        """Whether weights of that architecture have what it takes."""
        return self.head(architecture)


@dataclass(frozen=True)
class Ragged:
    """A representation that grows with the protein: an array whose first dimension is the kept residues."""

    name: str
    take: Callable[["PackedLayer"], "torch.Tensor"] | None
    """From a layer of a pack: float32 values of `shape`, one sequence's behind the other. None for what masked copies
    give."""
    residue_shape: Callable[[Any, Architecture], tuple[Any, ...]]
    """What each residue has, from the kept residues and the model's architecture."""
    dataset: str = "embeddings"
    """Its name in a residue file."""
    of_last_layer: bool = False
    """Whether it depends on all layers, and is counted to the last."""
    layer_in_name: bool = True
    """Whether the name of its file tells the layer."""
    in_windows: bool = True
    """Whether it is to be had of a protein that goes through in windows."""
    from_attention: bool = False
    """Whether it is taken from the attention of all layers."""
    head: Callable[[Architecture], bool] = lambda _: True
    serves: tuple[str, ...] = ()
    """What is made of its values, if not only what has its own name."""
    in_float16: bool = True
    """As of vectors."""

    table: ClassVar[str] = "residues"
    at_masks: ClassVar[bool] = False
    ragged: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False

    @property
    def from_copies(self) -> bool:
        """Whether it is put together from what masked copies of the protein give."""
        return self.take is None

    def shape(self, residues: Any, architecture: Architecture) -> tuple[Any, ...]:
        """Of the value of a protein of so many kept residues, or of several, if `residues` is an array of int64."""
        return (residues, *self.residue_shape(residues, architecture))

    def has_head(self, architecture: Architecture) -> bool:
        """Whether weights of that architecture have what it takes."""
        return self.head(architecture)


def _std_of_pieces(pieces: PieceVectors) -> np.ndarray:
    """The variance within the pieces and that between them."""
    between = pieces.means - pieces.average(pieces.means)
    std: np.ndarray = np.sqrt(pieces.average(pieces.vectors**2 + between**2))
    return std


def _has_language_head(architecture: Architecture) -> bool:
    return architecture.lm_head


REPRESENTATIONS: dict[str, Vector | Ragged] = {
    representation.name: representation
    for representation in (
        Vector("mean", lambda layer: layer.mean, lambda pieces: pieces.average(pieces.vectors)),
        Vector("bos", lambda layer: layer.bos, lambda pieces: pieces.vectors.mean(axis=0)),
        Vector("max", lambda layer: layer.reduce(layer.x, "max"), lambda pieces: pieces.vectors.max(axis=0)),
        Vector("std", lambda layer: layer.std, _std_of_pieces, needs_mean=True),
        Ragged("per_tok", lambda layer: layer.residues(layer.x), lambda _, architecture: (architecture.embed_dim,)),
        Ragged(
            "logits",
            lambda layer: layer.residues(layer.logits),
            lambda _, architecture: (architecture.vocabulary,),
            of_last_layer=True,
            head=_has_language_head,
        ),
        Ragged(
            "contacts",
            lambda layer: layer.contacts,
            lambda residues, _: (residues,),
            dataset="contacts",
            of_last_layer=True,
            layer_in_name=False,
            in_windows=False,
            from_attention=True,
            head=lambda architecture: architecture.contact_head,
        ),
        Ragged(
            "entropy",
            lambda layer: layer.residues(layer.likelihoods.entropy),
            lambda *_: (),
            dataset="entropy",
            of_last_layer=True,
            head=_has_language_head,
            in_float16=False,
        ),
        Ragged(
            "wt_marginals",
            lambda layer: layer.residues(layer.likelihoods.marginals),
            lambda *_: (len(AMINO_ACIDS),),
            dataset="marginals",
            of_last_layer=True,
            head=_has_language_head,
            serves=("wt_marginals", VARIANTS),
            in_float16=False,
        ),
        Ragged(
            "masked_marginals",
            None,
            lambda *_: (len(AMINO_ACIDS),),
            dataset="marginals",
            of_last_layer=True,
            head=_has_language_head,
            in_float16=False,
        ),
        # Of a masked copy, which is never in pieces: log p of the 20 amino acids at its mask.
        Vector(
            "masked",
            lambda layer: layer.at_masks,
            lambda pieces: pieces.vectors[0],
            table="",
            serves=("masked_marginals", "likelihoods", VARIANTS),
            of_last_layer=True,
            at_masks=True,
            in_float16=False,
            width=lambda _: len(AMINO_ACIDS),
            head=_has_language_head,
        ),
        # Sums over the residues, which those over the pieces of a long protein add up to.
        Vector(
            "likelihoods",
            lambda layer: layer.reduce(layer.likelihoods.summands, "sum").float(),
            lambda pieces: pieces.vectors.sum(axis=0),
            table="likelihoods",
            of_last_layer=True,
            layer_in_name=False,
            in_float16=False,
            width=lambda _: 3,
            head=_has_language_head,
        ),
    )
}
VECTORS = tuple(name for name, representation in REPRESENTATIONS.items() if representation.table == "features")
RAGGED = tuple(name for name, representation in REPRESENTATIONS.items() if representation.ragged)
#: All that can be asked for.
NAMES = tuple(name for name, representation in REPRESENTATIONS.items() if representation.table)


class Output(NamedTuple):
    """What is computed of a protein: a layer (0 to the model's number of layers) and a representation of it."""

    layer: int
    representation: str

    @property
    def kind(self) -> Vector | Ragged:
        """The representation's entry."""
        return REPRESENTATIONS[self.representation]

    @property
    def ragged(self) -> bool:
        """Whether its size grows with the protein."""
        return self.kind.ragged

    @property
    def file_stem(self) -> str:
        """The name of its file in the results."""
        return str(self) if self.kind.layer_in_name else self.representation

    @property
    def serves(self) -> list[str]:
        """The file stems of what is made of its values."""
        names = self.kind.serves or (self.representation,)
        return [name if name == VARIANTS else Output(self.layer, name).file_stem for name in names]

    def dtype(self, vectors: str) -> np.dtype:
        """In which its values lie in the store and in tables. vectors: `float32` or `float16`, as configured."""
        return np.dtype(vectors if self.kind.in_float16 else np.float32)

    def value_bytes(self, residues: np.ndarray, architecture: Architecture) -> np.ndarray:
        """Bytes of the float32 values of proteins of so many kept residues: int64 [proteins]."""
        numbers = math.prod(self.kind.shape(residues.astype(np.int64), architecture))
        return np.broadcast_to(np.int64(4) * numbers, residues.shape)

    def __str__(self) -> str:
        return f"layer{self.layer}.{self.representation}"

    @classmethod
    def parse(cls, text: str) -> "Output":
        """The inverse of `str`. Raises ValueError for any other text."""
        match = re.fullmatch(r"layer(\d+)\.(\w+)", text)
        if not match or match[2] not in REPRESENTATIONS:
            raise ValueError(f"{text!r} is no output")
        return cls(int(match[1]), match[2])


def file_stem_pattern(names: Iterable[str]) -> str:
    """A regular expression for the names of files of these representations, in all layers."""
    return "|".join(rf"layer\d+\.{name}" if REPRESENTATIONS[name].layer_in_name else name for name in names)


def combine(output: Output, values: Values, kept: Sequence[int], means: Values) -> np.ndarray:
    """A protein's value of an output, from those of its pieces, as if all kept residues had been together.

    values: float32, of each piece; kept: how many residues each piece keeps; means: the pieces' `mean`, which may be
    empty unless the representation `needs_mean`. What is ragged is laid end to end.
    """
    if len(values) == 1:
        return values[0]
    kind = output.kind
    if isinstance(kind, Ragged):
        return np.concatenate(values)
    pieces = PieceVectors(
        np.array(values, dtype=np.float64), np.array(kept)[:, None] / sum(kept), np.array(means, dtype=np.float64)
    )
    return kind.combine(pieces).astype(np.float32)
