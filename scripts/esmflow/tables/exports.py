"""Exports: a sample's records and their values in the layouts that other programs read, written in constant memory.

`EXPORTS` is the table: a writer with `@export` is all that config, rules and commands need to know of an export.
"""

# The rules import this table, so its writers import their libraries themselves: they take long.
import csv
import gzip
import hashlib
import io
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from esmflow import files
from esmflow.errors import DataError
from esmflow.representation import VECTORS, file_stem_pattern

if TYPE_CHECKING:
    import h5py

    from esmflow.tables.ordered import OrderedRecords

#: Bytes; the name of a file may have 255 with its ending.
_LONGEST_NAME = 240
_UNSAFE = re.compile(r"[/%\x00-\x1f\x7f]")
_ROWS = 10_000
#: Characters that GFF3 leaves as they are, besides letters and digits, in the name of a sequence and in attributes.
_SAFE_IN_SEQUENCE_ID = ".:^*$@!+_?-|"
_SAFE_IN_ATTRIBUTES = _SAFE_IN_SEQUENCE_ID + " /()[]{}<>#'\"~`\\"
#: SQL: the accession in an ID of UniProt's FASTA files, else the ID.
_ACCESSION = r"coalesce(nullif(regexp_extract(id, '^(?:sp|tr)\|([^|]+)\|', 1), ''), id)"
#: SQL: the header as fair-esm gives it, but for white space between ID and description, which is one blank.
_LABEL = "trim(id || ' ' || description)"


@dataclass(frozen=True)
class Layout:
    """What an export makes of one output, or of all outputs of a model at once."""

    representations: tuple[str, ...]
    """Those that it can hold; none if it is made of the catalog alone, of a sample that has contigs."""
    paths: tuple[str, ...]
    """Relative to `Results.exports`, with `{output}` for an output's file stem; without it, it takes all at once."""
    directory: bool = False
    """Whether its one path is a directory."""
    unit: str = ""
    """What tells it from the export's other layouts."""

    @property
    def of_one_output(self) -> bool:
        """Whether it takes one output, and not all of a model at once."""
        return "{output}" in self.paths[0]

    @property
    def file_stems(self) -> str:
        """A regular expression for the file stems of the outputs that it can hold."""
        return file_stem_pattern(self.representations)


@dataclass(frozen=True)
class Export:
    """A layout of another program, or several for different representations."""

    layouts: tuple[Layout, ...]
    write: Callable[..., None]
    """From `OrderedRecords`, or the catalog if it holds no representations, and a layout's paths."""
    needs_residues: bool

    @property
    def representations(self) -> tuple[str, ...]:
        """Those that it can hold."""
        return tuple(name for layout in self.layouts for name in layout.representations)

    @property
    def of_contigs(self) -> bool:
        """Whether it is made of the catalog alone, of a sample that has contigs."""
        return not self.representations


#: Exports of the tables of variants, which are of all models together and have a rule of their own.
OF_VARIANTS = ("proteingym",)
#: By their names in the config.
EXPORTS: dict[str, Export] = {}


def export(
    name: str, *layouts: Layout, needs_residues: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a writer into `EXPORTS`."""

    def enter(write: Callable[..., None]) -> Callable[..., None]:
        EXPORTS[name] = Export(layouts, write, needs_residues)
        return write

    return enter


@export("csv", Layout(VECTORS, ("csv/{output}.csv.gz",)))
def write_csv(records: "OrderedRecords", table: Path) -> None:
    """Write `id`, `length` and a column per component, `e0` and so on, as CSV compressed with gzip."""
    import pyarrow as pa
    import pyarrow.csv

    fields = [("id", pa.string()), ("length", pa.int32())]
    schema = pa.schema([*fields, *((f"e{number}", pa.float32()) for number in range(records.embed_dim))])
    with (
        files.atomic(table) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file,
        pa.csv.CSVWriter(file, schema) as writer,
    ):
        for batch, vectors in records.batches("id", "length"):
            components = np.ascontiguousarray(vectors.T, dtype=np.float32)
            columns = [batch["id"], batch["length"], *map(pa.array, components)]
            writer.write_batch(pa.record_batch(columns, schema))


@export("npy", Layout(VECTORS, ("npy/{output}.npy", "npy/{output}.ids.txt")))
def write_npy(records: "OrderedRecords", array: Path, ids: Path) -> None:
    """Write the vectors, [records, embed_dim] in their dtype, for `numpy.load`, and the IDs as text, one per line."""
    [output] = records.metadata
    descr = np.lib.format.dtype_to_descr(records.dtype(output))
    header = {"descr": descr, "fortran_order": False, "shape": (records.count, records.embed_dim)}
    with ExitStack() as stack:
        vector_file, id_file = (
            stack.enter_context(stack.enter_context(files.atomic(target)).open("wb")) for target in (array, ids)
        )
        np.lib.format.write_array_header_1_0(vector_file, header)
        for batch, vectors in records.batches("id"):
            vector_file.write(vectors.data)
            id_file.write("".join(f"{identifier}\n" for identifier in batch["id"].to_pylist()).encode())


@export(
    "uniprot_h5",
    Layout(VECTORS, ("uniprot_h5/{output}/per-protein.h5",), unit="per_protein"),
    Layout(("per_tok",), ("uniprot_h5/{output}/per-residue.h5",), unit="per_residue"),
)
def write_uniprot_h5(records: "OrderedRecords", target: Path) -> None:
    """Write UniProt's layout: HDF5 with a dataset per protein, its name the accession.

    The accession is that of an ID such as `sp|P12345|NAME`, else the whole ID, made a name by `safe_name`; the
    attribute `original_id` has the ID as it stands. The root's attribute `model_name` is the model's in the config.
    """
    from esmflow.tables import hdf5

    [(output, metadata)] = records.metadata.items()
    with hdf5.writing(target) as file:
        for (identifier, accession, repeat), values in records.rows("id", _ACCESSION, _repeat(_ACCESSION)):
            dataset = file.create_dataset(safe_name(accession, repeat), data=values[output])
            dataset.attrs["original_id"] = hdf5.text(identifier)
            file.check()
        file.attrs["model_name"] = metadata["esmflow.model"]
        file.attrs.update(metadata)


#: The keys of what fair-esm's script saves.
_FAIR_ESM_KEYS = {
    "mean": "mean_representations",
    "bos": "bos_representations",
    "per_tok": "representations",
    "contacts": "contacts",
}


@export("fair_esm_pt", Layout(tuple(_FAIR_ESM_KEYS), ("fair_esm_pt",), directory=True))
def write_fair_esm_pt(records: "OrderedRecords", directory: Path) -> None:
    """Write what fair-esm's extract script leaves in its output directory: a file `{label}.pt` per record.

    The label is the FASTA header; `safe_name` makes it the name of the file. A file holds a dictionary with `label`
    and, of `representations`, `mean_representations`, `bos_representations` (each by layer) and `contacts`, what
    was asked for.
    """
    import torch

    # torch ends the process, or tells of nothing but its own code, where a disk is full.
    content = io.BytesIO()
    with files.atomic_directory(directory) as work:
        for (label, repeat), values in records.rows(_LABEL, _repeat(_LABEL)):
            result: dict[str, Any] = {"label": label}
            for output, value in values.items():
                key = _FAIR_ESM_KEYS[output.representation]
                if output.kind.layer_in_name:
                    result.setdefault(key, {})[output.layer] = torch.from_numpy(value)
                else:
                    result[key] = torch.from_numpy(value)
            torch.save(result, content)
            with (work / f"{safe_name(label, repeat)}.pt").open("xb") as file:
                file.write(content.getbuffer())
            content.seek(0)
            content.truncate()


@export(
    "bio_embeddings",
    Layout(
        VECTORS,
        ("bio_embeddings/{output}/reduced_embeddings_file.h5", "bio_embeddings/{output}/mapping_file.csv"),
    ),
    needs_residues=True,
)
def write_bio_embeddings(records: "OrderedRecords", embeddings: Path, mapping: Path) -> None:
    """Write the layout of bio_embeddings: HDF5 with a dataset per sequence, its name the MD5 of the residues.

    The attribute `original_id` has the ID of the first record with that sequence. `mapping` lists all records: MD5, ID
    and length.
    """
    from esmflow.tables import hdf5

    [output] = records.metadata
    with ExitStack() as stack:
        h5 = stack.enter_context(hdf5.writing(embeddings))
        text = stack.enter_context(files.atomic(mapping)).open("w", encoding="utf-8", newline="")
        writer = csv.writer(stack.enter_context(text), lineterminator="\n")
        writer.writerow(["", "original_id", "sequence_length"])
        for (md5, identifier, length, repeat), values in records.rows("md5", "id", "length", _repeat("md5")):
            writer.writerow([md5, identifier, length])
            if repeat == 1:
                h5.create_dataset(md5, data=values[output]).attrs["original_id"] = hdf5.text(identifier)
                h5.check()


@export("anndata", Layout(VECTORS, ("anndata/{output}.h5ad",)))
def write_anndata(records: "OrderedRecords", target: Path) -> None:
    """Write AnnData's file format (https://anndata.readthedocs.io, "On-disk format"): `X` are the vectors.

    `obs` has the records with `id`, `description` and `length`; its index is the ID, `numbered` where it comes again.
    `uns` has under `esmflow` what made the numbers.
    """
    import h5py

    from esmflow.tables import hdf5

    [(output, metadata)] = records.metadata.items()
    with hdf5.writing(target) as file:
        _encode(file, "anndata", "0.1.0")
        x = _encode(file.create_dataset("X", (records.count, records.embed_dim), records.dtype(output)), "array")
        obs = _frame(file, "obs", ["id", "description", "length"])
        index, id_, description = (
            _encode(obs.create_dataset(name, records.count, h5py.string_dtype()), "string-array")
            for name in ("_index", "id", "description")
        )
        lengths = _encode(obs.create_dataset("length", records.count, np.int32), "array")
        done = 0
        for batch, vectors in records.batches("id", "description", "length", _repeat("id")):
            rows = slice(done, done := done + len(batch))
            x[rows] = vectors
            lengths[rows] = batch["length"].to_numpy()
            ids = list(map(hdf5.text, batch["id"].to_pylist()))
            index[rows] = list(map(numbered, ids, batch["repeat"].to_pylist()))
            id_[rows] = ids
            description[rows] = list(map(hdf5.text, batch["description"].to_pylist()))
            file.check()
        var = _frame(file, "var", [])
        components = [str(number) for number in range(records.embed_dim)]
        _encode(var.create_dataset("_index", data=components, dtype=h5py.string_dtype()), "string-array")
        uns = _encode(file.create_group("uns"), "dict", "0.1.0")
        provenance = _encode(uns.create_group("esmflow"), "dict", "0.1.0")
        for name, value in metadata.items():
            _encode(provenance.create_dataset(name.removeprefix("esmflow."), data=value), "string")


@export("gff", Layout((), ("fragments.gff3",)))
def write_gff(catalog: Path, target: Path) -> None:
    """Write where each fragment of a sample lies, as GFF3 (Sequence Ontology, version 1.26), in the catalog's order.

    Its attribute `ID` is the record's, `numbered` where it comes again. Genes are `CDS`, with Prodigal's attribute
    `partial`; frames of chunks are `ORF`. Raises DataError for a catalog without contigs.
    """
    from esmflow import database
    from esmflow.sealed import whole

    with (
        database.connect(target) as connection,
        files.atomic(target) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        records = connection.read_parquet(database.literal(whole(catalog)), hive_partitioning=False)
        if "contig" not in records.columns:
            raise DataError(f"{catalog}: its sample has no contigs; give that of a sample that has some")
        fragments = records.filter("status = 'valid' AND \"start\" IS NOT NULL")
        rows = fragments.project(f'id, contig, "start", "end", strand, flags, {_repeat("id")}, index').order("index")
        file.write("##gff-version 3\n")
        for batch in rows.to_arrow_reader(_ROWS):
            file.writelines(map(_gff_line, batch.to_pylist()))


def _gff_line(row: dict[str, Any]) -> str:
    # The IDs that kinds of contigs make: Prodigal's of genes, VirNucPro's of frames.
    is_gene = re.fullmatch(r"_\d+", row["id"].removeprefix(row["contig"]))
    attributes = "ID=" + quote(numbered(row["id"], row["repeat"]), safe=_SAFE_IN_ATTRIBUTES)
    if is_gene:
        partial = re.search(r"(?:^|,)partial:(\d\d)", row["flags"])
        attributes += f";partial={partial[1] if partial else '00'}"
    columns = [quote(row["contig"], safe=_SAFE_IN_SEQUENCE_ID), "esmflow", "CDS" if is_gene else "ORF"]
    columns += [str(row["start"]), str(row["end"]), ".", row["strand"], "0", attributes]
    return "\t".join(columns) + "\n"


def safe_name(text: str, repeat: int = 1) -> str:
    """A name for a file or an HDF5 dataset: `/`, `%`, control characters and names of dots become `%XX`, as in URLs.

    The original comes back by `urllib.parse.unquote`, after what `numbered` added has been cut off. A name that is too
    long for a file system is cut and ends with `%+` and 16 digits of its SHA-256.
    """
    name = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = f"{name.encode()[: _LONGEST_NAME - 40].decode(errors='ignore')}%+{digest}"
    return numbered(name, repeat)


def numbered(name: str, repeat: int) -> str:
    """The name, for the second record that bears it `NAME%-2`, and so on."""
    return name if repeat == 1 else f"{name}%-{repeat}"


def _repeat(column: str) -> str:
    """SQL: `repeat`, which is 1 for the first record with that value of a column, 2 for the second."""
    return f"row_number() OVER (PARTITION BY {column} ORDER BY index) AS repeat"


def _encode(element: Any, kind: str, version: str = "0.2.0") -> Any:
    """Say of an HDF5 group or dataset what it is to AnnData."""
    element.attrs["encoding-type"], element.attrs["encoding-version"] = kind, version
    return element


def _frame(file: "h5py.File", name: str, columns: list[str]) -> Any:
    """An empty data frame of AnnData's, with `_index`."""
    import h5py

    frame = _encode(file.create_group(name), "dataframe")
    frame.attrs["_index"] = "_index"
    frame.attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())
    return frame
