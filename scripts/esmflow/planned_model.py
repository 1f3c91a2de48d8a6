"""A model of a run: what the config asks of it, what its weights are, and what follows from both."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from esmflow import files
from esmflow.architecture import Architecture
from esmflow.errors import ConfigError, DataError
from esmflow.representation import REPRESENTATIONS, Output
from esmflow.results import Results
from esmflow.treatment import MASKED, WHOLE, Treatment

#: Raised when the same text would be cleaned to other residues; part of the store's key.
CLEANING_VERSION = 1
#: Raised when the same weights and residues would give other numbers; part of the store's key.
NUMERICS_VERSION = 1
#: The precision that is left to the device.
AUTO = "auto"


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
    vectors: str = "float32"
    """The numbers of vectors in the store and in tables: `float32` or `float16`."""

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
            config.get("vectors", cls.vectors),
        )

    @property
    def long_treatment(self) -> Treatment | None:
        """The treatment of sequences longer than `max_length`; None if they are skipped."""
        return {
            "window": Treatment("window", self.max_length, self.window_overlap),
            "truncate": Treatment("truncate", self.max_length),
            "full": WHOLE,
            "skip": None,
            str(MASKED): MASKED,
        }[self.long_sequences]

    def kept(self, lengths: np.ndarray) -> np.ndarray:
        """How many residues are kept of sequences of so many, 0 of those that are skipped: int [sequences]."""
        long = self.long_treatment.kept(lengths) if self.long_treatment else np.zeros_like(lengths)
        kept: np.ndarray = np.where(lengths <= self.max_length, lengths, long)
        return kept

    @property
    def treatments(self) -> list[Treatment]:
        """The different treatments of sequences of all lengths."""
        lengths = (self.max_length, self.max_length + 1) if self.max_length else (1,)
        return list(dict.fromkeys(treatment for treatment in map(self.treatment, lengths) if treatment))

    def treatment(self, length: int) -> Treatment | None:
        """The treatment of a sequence of so many residues; None if it is skipped."""
        return WHOLE if length <= self.max_length else self.long_treatment

    def check_layers(self, layers: int) -> None:
        """Raise ConfigError for a layer that a model of so many has not."""
        for layer in self.layers:
            if not -(layers + 1) <= layer <= layers:
                raise ConfigError(
                    f"models.{self.name}.layers: {layer} is out of range; "
                    f"the model has layers 0 to {layers} (or -{layers + 1} to -1)"
                )

    def check_lengths(self, longest: int | None) -> None:
        """Raise ConfigError for what a model that takes at most so many residues, or any number, cannot do."""
        if longest is not None and self.long_sequences == "full":
            raise ConfigError(
                f"models.{self.name}.long_sequences: 'full' is for ESM-2 and ESM-C; this model takes at most {longest} "
                "residues, use 'window' or 'truncate'"
            )
        if longest is not None and self.max_length > longest:
            raise ConfigError(
                f"models.{self.name}.max_length: {self.max_length} is more than this model takes; "
                f"set it to {longest} or less"
            )


@dataclass(frozen=True)
class RefusedModel:
    """What is in place of a model's descriptor if its weights cannot be had, or cannot be used."""

    refused: str
    """Why, in one line."""

    def save(self, path: Path) -> None:
        """Write it as JSON, in one atomic step."""
        files.write_json(path, self)


def refused_model(descriptor: Path) -> str | None:
    """Why the model of this descriptor was refused; None if it was not."""
    with suppress(DataError):
        return files.read_json(descriptor, RefusedModel).refused
    return None


@dataclass(frozen=True)
class Descriptor:
    """A model that is in place: where its weights lie, what they are, and the hash that keys the store."""

    name: str
    files: list[str]
    stamp: list[list[int]]
    """Bytes and time of change (ns) of each file."""
    sha256: str
    architecture: Architecture
    adapter: list[str] = field(default_factory=list)
    """The files of the adapter that is merged into the weights."""
    revision: str = ""
    """The commit of the Hugging Face Hub's repository that they are of."""
    settings: list[str] = field(default_factory=list)
    """What decides their numbers and is in none of their files' tensors, where it is not as in official models."""
    licence: str = ""
    """Of the weights; empty if nothing tells it."""

    def save(self, path: Path) -> None:
        """Write the descriptor as JSON, in one atomic step."""
        files.write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> "Descriptor":
        """Read a descriptor written by `save`. Raises DataError if it is damaged, or if the model was refused."""
        if line := refused_model(path):
            raise DataError(line)
        return files.read_json(path, cls)


@dataclass(frozen=True)
class Space:
    """A part of the store in which a sequence has one value per output."""

    weights_sha256: str
    treatment: Treatment
    precision: str
    """In which the values were computed."""
    vectors: str = "float32"
    """The numbers in which vectors lie there."""

    @property
    def directory(self) -> Path:
        """Where its files lie, relative to the store."""
        versions = f"letters{CLEANING_VERSION}-numerics{NUMERICS_VERSION}"
        name = f"{self.treatment}-{self.precision}-{versions}"
        return Path(
            "embeddings", self.weights_sha256[:16], name if self.vectors == "float32" else f"{name}-{self.vectors}"
        )

    @classmethod
    def parse(cls, weights: str, directory: str) -> "Space":
        """That of a directory. weights: the first 16 digits of their SHA-256."""
        treatment_and_precision, _, rest = directory.partition("-letters")
        treatment, _, precision = treatment_and_precision.rpartition("-")
        *_, last = rest.split("-")
        return cls(weights, Treatment.parse(treatment), precision, last if last == "float16" else cls.vectors)


@dataclass(frozen=True)
class PlannedModel:
    """A model as a run uses it."""

    spec: ModelSpec
    descriptor: Descriptor
    attention: str = "auto"
    """The kernel that is asked for; decides no numbers."""

    @classmethod
    def load(cls, name: str, config: Mapping[str, Any], descriptor: Path) -> "PlannedModel":
        """The model of that name in the config, from its part of the validated config and its descriptor's file."""
        return cls(ModelSpec.of(name, config), Descriptor.load(descriptor))

    @property
    def name(self) -> str:
        """Its name in the config."""
        return self.spec.name

    @property
    def architecture(self) -> Architecture:
        """The shape of its trunk."""
        return self.descriptor.architecture

    @property
    def outputs(self) -> list[Output]:
        """What is asked of it, sorted. Raises ConfigError for a layer that it has not."""
        layers = self.architecture.layers
        self.spec.check_layers(layers)
        return sorted(
            {
                Output(layers if REPRESENTATIONS[name].of_last_layer else layer % (layers + 1), name)
                for layer in self.spec.layers
                for name in self.spec.representations
            }
        )

    @property
    def masks(self) -> bool:
        """Whether all positions of all sequences are to be masked, one in each copy."""
        return any(REPRESENTATIONS[name].from_copies for name in self.spec.representations)

    def asked_for(self, representations: Iterable[str]) -> "PlannedModel":
        """The same model, of which these are asked instead."""
        return replace(self, spec=replace(self.spec, representations=tuple(representations)))

    @property
    def unmasked(self) -> "PlannedModel":
        """The same model, of which only that is asked which takes no masked copies."""
        return self.asked_for(name for name in self.spec.representations if not REPRESENTATIONS[name].from_copies)

    @property
    def of_copies(self) -> "PlannedModel":
        """The same model as masked copies go through it, which are of any length: all are longer than nothing."""
        masking = replace(self.spec, layers=(-1,), long_sequences=str(MASKED), max_length=0, vectors="float32")
        return replace(self, spec=masking).asked_for(["masked"])

    def precision_on(self, device: str) -> str:
        """What it is computed in on `cpu` or `cuda`: as configured, or for `auto` fp32 on a CPU and 16 bit on a GPU."""
        if self.spec.precision != AUTO:
            return self.spec.precision
        return "fp32" if device == "cpu" else self.architecture.half_precision

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the vectors that it takes, the most exact first."""
        if self.spec.precision != AUTO:
            return (self.spec.precision,)
        # Earlier versions kept what `auto` had computed under its own name, on whatever device.
        return "fp32", self.architecture.half_precision, AUTO

    @property
    def spaces(self) -> list[Space]:
        """The parts of the store in which its values may lie."""
        return [space for treatment in self.spec.treatments for space in self.spaces_of(treatment)]

    def spaces_of(self, treatment: Treatment) -> list[Space]:
        """Those for sequences that are treated so, the most exact first."""
        return [replace(self.space(treatment), precision=precision) for precision in self.precisions]

    def space(self, treatment: Treatment) -> Space:
        """The same under the name of the precision that is asked for, which names the shards of any device."""
        return Space(self.descriptor.sha256, treatment, self.spec.precision, self.spec.vectors)

    def stored_bytes(self, output: Output, residues: np.ndarray) -> np.ndarray:
        """Bytes of an output's values of proteins of so many kept residues, as they are stored: int64 [proteins]."""
        size = output.value_bytes(residues, self.architecture)
        return size * output.dtype(self.spec.vectors).itemsize // np.dtype(np.float32).itemsize

    def provenance(self, output: Output) -> dict[str, str]:
        """What made the numbers of a table, as far as the plan tells."""
        return {
            "model": self.name,
            "weights_sha256": self.descriptor.sha256,
            "weights_licence": self.descriptor.licence or "unknown",
            "layer": str(output.layer),
            "representation": output.representation,
            "long_sequences": self.spec.long_sequences,
            "max_length": str(self.spec.max_length),
            "window_overlap": str(self.spec.window_overlap),
        }

    def check(self, *, variants: bool = False) -> None:
        """Raise ConfigError for what weights of this shape cannot do. variants: whether it is to score some."""
        where = f"models.{self.name}"
        self.spec.check_lengths(self.architecture.max_residues)
        for name in self.spec.representations:
            if not REPRESENTATIONS[name].has_head(self.architecture):
                raise ConfigError(
                    f"{where}.representations: the weights have no head for {name}; "
                    "leave it out or use weights that have it"
                )
        if variants and not REPRESENTATIONS["wt_marginals"].has_head(self.architecture):
            raise ConfigError(
                f"{where}: the weights have no head to score variants with; use weights that have it, or score the "
                "variants in a run without this model"
            )


def load_models(
    configs: Mapping[str, Mapping[str, Any]], results: Results
) -> tuple[list[PlannedModel], dict[str, str]]:
    """The models of a run that can be used, and of those that were refused: why, by name."""
    refused = {name: line for name in configs if (line := refused_model(results.descriptor(name)))}
    usable = {name: config for name, config in configs.items() if name not in refused}
    return [PlannedModel.load(name, config, results.descriptor(name)) for name, config in usable.items()], refused
