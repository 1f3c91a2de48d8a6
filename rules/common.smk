import json
import os
import sys
from pathlib import Path

import psutil
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, SCRIPTS)

from esmflow import allocation
from esmflow.config.check import check_config
from esmflow.errors import ConfigError, DataError, EsmflowError
from esmflow.files import sha256
from esmflow.heartbeat import Heartbeat
from esmflow.inputs.kinds import KINDS
from esmflow.inputs.samples import read_samples, require_contigs
from esmflow.planned_model import CLEANING_VERSION, NUMERICS_VERSION, ModelSpec, refused_model
from esmflow.representation import NAMES, REPRESENTATIONS, VARIANTS, VECTORS, file_stem_pattern
from esmflow.results import Results, TableName
from esmflow.run_plan import RunPlan
from esmflow.tables.exports import EXPORTS
from esmflow.weights_source import is_path


def end(error):
    """End Snakemake with the line of an error and its exit code."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


try:
    config = check_config(config, typed=workflow.config_settings.config)
    if workflow.modifier.path_modifier.replace_prefix(config["results"]) != config["results"]:
        raise ConfigError(
            "module: esmflow takes neither 'prefix' nor 'replace_prefix'; set 'results' in its config instead"
        )
    SAMPLES = read_samples(Path(config["samples"]))
    for_contigs = [f"exports: {name}" for name in config["exports"] if name in EXPORTS and EXPORTS[name].of_contigs]
    require_contigs(SAMPLES, for_contigs + (["contigs"] if config["contigs"] else []))
except EsmflowError as error:
    end(error)

# In the environment of Snakemake, since a prefix of all shell commands would take the place of that of a workflow that uses
# this one as a module; and no part of the commands, so that a clone that was moved has nothing to do again.
os.environ.update(
    ESMFLOW=SCRIPTS,
    # An environment of conda brings its own Python; else Snakemake's own is the one with the requirements.
    ESMFLOW_PYTHON=(
        "python" if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method else sys.executable
    ),
)
# Only a job that was submitted has a time limit. It counts from the start of the first of the job's Snakemakes, which may
# take a minute to come to the worker.
if workflow.remote_exec:
    os.environ.setdefault("ESMFLOW_JOB_BEGAN", str(psutil.Process().create_time()))
else:
    os.environ.pop("ESMFLOW_JOB_BEGAN", None)

# Files of fewer bytes are told apart by their content, as Snakemake does for those that are newer.
SMALL = 1_000_000
MODELS = config["models"]
STORE = config["store"]
RESULTS = Results(Path(config["results"]))
CATALOG = str(RESULTS.catalog("{sample}"))
SEQUENCES = str(RESULTS.sequences("{sample}"))
VARIANT_SHEET = [config["variants"]] if "variants" in config else []
MUTANTS = str(RESULTS.mutants("{sample}"))
MASKED = str(RESULTS.masked("{sample}", "{model}"))
DESCRIPTOR = str(RESULTS.descriptor("{model}"))
PLAN = str(RESULTS.plan_directory)
RECEIPT = str(RESULTS.receipt("{job}"))
TABLE = TableName("{sample}", "{model}", "{output}")
FEATURES = str(RESULTS.table(TABLE))
PARTS = str(RESULTS.table_parts(TABLE))
RESIDUES = str(RESULTS.residues(TABLE))
LIKELIHOODS = str(RESULTS.likelihoods(TABLE))
CONTIGS = str(RESULTS.contigs(TABLE))
STATUS = str(RESULTS.status("{sample}"))
VARIANT_TABLE = str(RESULTS.variants("{sample}"))
PROTEINGYM = str(RESULTS.proteingym("{sample}"))
REPORT = str(RESULTS.report)
# What is made of masked copies, and the models that are to see each residue masked.
FROM_COPIES = [name for name in NAMES if REPRESENTATIONS[name].from_copies]
MASKING = [model for model in MODELS if not set(FROM_COPIES).isdisjoint(MODELS[model]["representations"])]
EMBED_THREADS = 8 * max(config["workers"]["gpus_per_job"], 1)


wildcard_constraints:
    sample="[^/]+",
    model="[^/]+",
    job="[0-9a-f]+",
    output=file_stem_pattern(NAMES),
