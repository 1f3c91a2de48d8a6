import functools
import json
import math
import shlex
import sys
from pathlib import Path

# Not workflow.basedir, which is that of a workflow that uses this one as a module.
SCRIPTS = str(Path(str(workflow.current_basedir)).parent / "scripts")
sys.path.insert(0, SCRIPTS)

from esmflow.config import check_config
from esmflow.errors import EsmflowError
from esmflow.files import sha256
from esmflow.inputs.samples import read_samples
from esmflow.spec import EXPORTS, LETTERS_VERSION, NUMERICS_VERSION, RAGGED, VECTORS, ModelSpec

try:
    config = check_config(config)
    SAMPLES = read_samples(Path(config["samples"]))
except EsmflowError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

# Where the commands lie is no part of them: a clone that was moved has nothing to do again. An environment made by
# Snakemake brings its own Python; else Snakemake's own is the one with the requirements.
environment = f"export ESMFLOW={shlex.quote(SCRIPTS)}"
if not workflow.deployment_settings.deployment_method:
    environment += f" PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
# Only a job that was submitted has a time limit, which the worker must know.
if workflow.remote_exec:
    environment += " IN_ALLOCATION=yes"
shell.prefix(f"{environment}; ")

# Files of fewer bytes are told apart by their content, as Snakemake does for those that are newer.
SMALL = 1_000_000
MODELS = config["models"]
RESULTS = config["results"]
STORE = config["store"]
CATALOG = f"{RESULTS}/catalog/{{sample}}.parquet"
SEQUENCES = f"{RESULTS}/sequences/{{sample}}.parquet"
DESCRIPTOR = f"{RESULTS}/models/{{model}}.json"
PLAN = f"{RESULTS}/plan"
RECEIPT = f"{RESULTS}/receipts/{{job}}.json"
TABLE = f"{RESULTS}/features/{{sample}}/{{model}}/{{output}}.parquet"
TABLE_PARTS = f"{RESULTS}/features/{{sample}}/{{model}}/{{output}}.parts"
RESIDUES = f"{RESULTS}/residues/{{sample}}/{{model}}/{{output}}.h5"
STATUS = f"{RESULTS}/status/{{sample}}.tsv"
EMBED_THREADS = 8 * max(config["workers"]["gpus_per_job"], 1)
EXPORT = f"{RESULTS}/exports/{{sample}}/{{model}}"


wildcard_constraints:
    sample="[^/]+",
    model="[^/]+",
    job="[0-9a-f]+",
    output=rf"layer\d+\.({'|'.join(VECTORS)}|per_tok|logits)|contacts",


def numeric_config(model):
    """What of a model's config decides numbers: a change of it reruns."""
    return {key: MODELS[model][key] for key in ModelSpec.__dataclass_fields__ if key != "name"}


def local_weights(wildcards):
    """The weights as an input file, where they are the user's own."""
    weights = MODELS[wildcards.model]["weights"]
    return [] if weights == "fair-esm" or weights.startswith("wheel:") else weights


def stamps(paths):
    """What tells of each file that users bring, or of those in a directory, that it is another: newer or older."""
    files = [part for path in map(Path, paths) for part in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [
        sha256(file) if file.stat().st_size < SMALL else (file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file.is_file()
    ]


def expected_checksum(wildcards):
    """The option that checks the weights, where the config has a checksum."""
    checksum = MODELS[wildcards.model].get("sha256")
    return ["--sha256", checksum] if checksum else []


def quarantine(wildcards):
    """What the store has lost to damage: more of it since the last plan is a reason to plan again."""
    directory = Path(STORE, "quarantine")
    return [str(directory)] if directory.exists() else []


def wants_contacts(wildcards):
    """The option that brings a contact head with the weights, where the config asks for contacts."""
    return ["--contacts"] if "contacts" in MODELS[wildcards.model]["representations"] else []


def parent(files):
    """The directory that files have in common."""
    return str(Path(files[0]).parent)


@functools.lru_cache(maxsize=1)
def load_plan(path, written):
    """The plan written at that time; it is asked for once per table and thrice per job."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_plan():
    """The current plan, once its checkpoint has run."""
    path = Path(checkpoints.plan.get().output.directory) / "plan.json"
    return load_plan(path, path.stat().st_mtime_ns)


def planned(wildcards):
    """What the plan says of a worker job. On a compute node nothing is known of checkpoints: the file must do."""
    path = Path(PLAN) / "plan.json"
    return load_plan(path, path.stat().st_mtime_ns)["jobs"][wildcards.job]


def tables(wildcards):
    """All feature tables and residue files, with their layers counted from 0."""
    plan = read_plan()
    return [table_path(name, in_parts=name in plan["in_parts"]) for name in plan["tables"]]


def table_path(name, in_parts):
    """Where a table of the plan lies."""
    sample, model, output = Path(name).parts
    form = RESIDUES if output.endswith(RAGGED) else TABLE_PARTS if in_parts else TABLE
    return form.format(sample=sample, model=model, output=output)


def exports(wildcards):
    """What the exports that the config asks for make of the tables."""
    paths = {
        "csv": "csv/{output}.csv.gz",
        "npy": "npy/{output}.npy",
        "uniprot_h5": "uniprot_h5/{output}/per-{unit}.h5",
        "fair_esm_pt": "fair_esm_pt",
        "bio_embeddings": "bio_embeddings/{output}/reduced_embeddings_file.h5",
        "anndata": "anndata/{output}.h5ad",
    }
    result = set()
    for table in read_plan()["tables"]:
        sample, model, output = Path(table).parts
        unit = "residue" if output.endswith("per_tok") else "protein"
        for name in config["exports"]:
            if output.endswith(EXPORTS[name]):
                path = f"{EXPORT}/{paths[name]}"
                result.add(path.format(sample=sample, model=model, output=output, unit=unit))
    return sorted(result)


def table_receipts(wildcards):
    """The receipts of the jobs that a feature table or a residue file needs."""
    jobs = read_plan()["tables"][f"{wildcards.sample}/{wildcards.model}/{wildcards.output}"]
    return expand(RECEIPT, job=jobs)


def receipts(prefix, kinds):
    """The receipts of the jobs that any feature table needs whose name begins and ends so."""
    needed = read_plan()["tables"].items()
    jobs = {job for table, names in needed if table.startswith(prefix) and table.endswith(kinds) for job in names}
    return expand(RECEIPT, job=sorted(jobs))


def sample_receipts(wildcards):
    """The receipts of the jobs that any feature table of a sample needs."""
    return receipts(f"{wildcards.sample}/", "")


def fair_esm_receipts(wildcards):
    """The receipts of the jobs that the export fair_esm_pt needs."""
    return receipts(f"{wildcards.sample}/{wildcards.model}/", EXPORTS["fair_esm_pt"])


def job_attention(wildcards):
    """The attention kernel that the config asks for each of the job's models."""
    models = planned(wildcards)["models"]
    return ",".join(f"{model}={MODELS[model]['attention']}" for model in models)


def job_minutes(wildcards, attempt):
    """Minutes to ask for: five to start and twice what the plan expects; double that after the first attempt."""
    return (5 + math.ceil(2 * planned(wildcards)["minutes"])) * min(attempt, 2)


def job_memory(wildcards, attempt):
    """Megabytes to ask for: what the plan expects; double that after the first attempt."""
    return planned(wildcards)["memory_mb"] * min(attempt, 2)


def table_spec(wildcards):
    """The part of a model's config that concerns one table, so that another layer leaves it alone."""
    layer, _, representation = wildcards.output.removeprefix("layer").rpartition(".")
    return json.dumps(
        numeric_config(wildcards.model) | {"layers": [int(layer or -1)], "representations": [representation]}
    )


def fair_esm_spec(wildcards):
    """The part of a model's config that concerns the export fair_esm_pt."""
    spec = numeric_config(wildcards.model)
    return json.dumps(
        spec | {"representations": [kind for kind in spec["representations"] if kind in EXPORTS["fair_esm_pt"]]}
    )
