"""What a run asks of a model: outputs, and how sequences too long for it are treated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from esmflow.errors import ConfigError

if TYPE_CHECKING:
    from esmflow.descriptor import Architecture

#: Raised when the same text would be cleaned to other residues; part of the store's key.
LETTERS_VERSION = 1
#: Raised when the same weights and residues would give other numbers; part of the store's key.
NUMERICS_VERSION = 1
#: The treatment of a sequence that goes through the model as it is.
WHOLE = "whole"

#: Representations of which a protein has one vector, whatever its length.
VECTORS = ("mean", "bos", "max", "std")
#: Representations of which a protein has as much as its length asks for.
RAGGED = ("per_tok", "logits", "contacts")
#: What of these each export can hold.
EXPORTS = {
    "csv": VECTORS,
    "npy": VECTORS,
    "uniprot_h5": (*VECTORS, "per_tok"),
    "fair_esm_pt": ("mean", "bos", "per_tok", "contacts"),
    "bio_embeddings": VECTORS,
    "anndata": VECTORS,
}


class Output(NamedTuple):
    """What is computed of a protein: a layer (0 to the model's number of layers) and a representation of it.

    `logits` and `contacts`, which depend on all layers, are counted to the last.
    """

    layer: int
    representation: str

    @property
    def ragged(self) -> bool:
        """Whether its size grows with the protein."""
        return self.representation in RAGGED

    @property
    def file_stem(self) -> str:
        """The name of its file in the results: that of contacts has no layer."""
        return "contacts" if self.representation == "contacts" else str(self)

    def __str__(self) -> str:
        return f"layer{self.layer}.{self.representation}"

    @classmethod
    def parse(cls, text: str) -> "Output":
        """The inverse of `str`."""
        layer, representation = text.removeprefix("layer").split(".")
        return cls(int(layer), representation)


@dataclass(frozen=True)
class ModelSpec:
    """A model's part of the config, but for where its weights come from and how fast it should be."""

    name: str
    layers: tuple[int, ...]
    representations: tuple[str, ...]
    long_sequences: str
    max_length: int
    window_overlap: int
    precision: str

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any]) -> "ModelSpec":
        """Pick a model's spec out of its validated config."""
        return cls(
            name,
            tuple(config["layers"]),
            tuple(config["representations"]),
            config["long_sequences"],
            config["max_length"],
            config["window_overlap"],
            config["precision"],
        )

    @property
    def long_treatment(self) -> str | None:
        """The treatment of sequences longer than `max_length`; None if they are skipped."""
        return {
            "window": f"window-{self.max_length}-{self.window_overlap}",
            "truncate": f"truncate-{self.max_length}",
            "full": WHOLE,
            "skip": None,
        }[self.long_sequences]

    @property
    def treatments(self) -> list[str]:
        """The different treatments of sequences of all lengths."""
        return [WHOLE] if self.long_treatment in (None, WHOLE) else [WHOLE, self.long_treatment]

    def treatment(self, length: int) -> str | None:
        """The treatment of a sequence of so many residues; None if it is skipped."""
        return WHOLE if length <= self.max_length else self.long_treatment

    def outputs(self, layers: int) -> list[Output]:
        """The outputs asked of a model of so many layers, sorted. Raises ConfigError for a layer it has not."""
        for layer in self.layers:
            if not -(layers + 1) <= layer <= layers:
                raise ConfigError(
                    f"models.{self.name}.layers: {layer} is out of range; "
                    f"the model has layers 0 to {layers} (or -{layers + 1} to -1)"
                )
        wanted = {layer % (layers + 1) for layer in self.layers}
        whole = {"logits", "contacts"}
        return sorted(
            {
                Output(layers if representation in whole else layer, representation)
                for layer in wanted
                for representation in self.representations
            }
        )

    def check(self, shape: "Architecture") -> None:
        """Raise ConfigError for what a model of that shape cannot do."""
        where, longest = f"models.{self.name}", shape.max_residues
        if longest is not None and self.long_sequences == "full":
            raise ConfigError(
                f"{where}.long_sequences: 'full' is for ESM-2; this model takes at most {longest} residues, "
                "use 'window' or 'truncate'"
            )
        if longest is not None and self.max_length > longest:
            raise ConfigError(
                f"{where}.max_length: {self.max_length} is more than this model takes; set it to {longest} or less"
            )
        if self.long_sequences == "window" and self.window_overlap >= self.max_length:
            raise ConfigError(
                f"{where}.window_overlap: {self.window_overlap} must be less than max_length ({self.max_length})"
            )
        if self.long_sequences == "window" and "contacts" in self.representations:
            raise ConfigError(
                f"{where}.long_sequences: contacts are not to be had from windows; use 'truncate', 'full' or 'skip'"
            )
        for representation, present in (("logits", shape.lm_head), ("contacts", shape.contact_head)):
            if representation in self.representations and not present:
                raise ConfigError(
                    f"{where}.representations: the weights have no head for {representation}; "
                    "leave it out or use weights that have it"
                )
