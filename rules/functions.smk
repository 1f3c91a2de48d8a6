# What the rules take from the config and from the plan, when a job is made of them.

import functools
import json
import re


def numeric_config(model):
    """What of a model's config decides numbers: a change of it reruns."""
    values = MODELS[model] | {"vectors": config["vectors"]}
    return {key: values[key] for key in ModelSpec.__dataclass_fields__ if key != "name"}


def stamps(paths):
    """The stamp of each file that users bring, or of those in a directory."""
    files = [part for path in map(Path, paths) for part in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [stamp(file) for file in files if file.is_file()]


@functools.cache
def stamp(file):
    """What tells of a file that it is another, newer or older; None if it cannot be read."""
    if not readable(file):
        return None
    status = file.stat()
    return sha256(file) if status.st_size < SMALL else (status.st_size, status.st_mtime_ns)


def readable(path):
    """Whether a file can be read, or is a directory."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except IsADirectoryError:
        return True
    except OSError:
        return False
    return True


def inputs(paths):
    """The files that can be inputs: Snakemake takes what is in braces for a wildcard, and ends if one cannot be read."""
    return [str(path) for path in map(Path, paths) if not re.search("[{}]", str(path)) and readable(path)]


# As params these are functions, since Snakemake looks for wildcards in a text.
def store(wildcards):
    """The directory of the store."""
    return STORE


def samples(wildcards):
    """The sample sheet."""
    return config["samples"]


def fastas(wildcards):
    """The FASTA files of a sample."""
    return [str(file.path) for file in SAMPLES[wildcards.sample]]


def of_contigs(sample):
    """Whether a sample has files of contigs."""
    return any(KINDS[file.kind].of_contigs for file in SAMPLES[sample])


def contig_options(wildcards):
    """The options that tell how proteins come out of contigs, where a sample has some."""
    files = SAMPLES[wildcards.sample]
    codes = ["--code", *(str(file.code or "none") for file in files)] if any(file.code for file in files) else []
    return codes + (["--chunk", str(config["chunk"])] if any(KINDS[file.kind].chunks for file in files) else [])


@functools.lru_cache(maxsize=1)
def load_plan(written):
    """The plan written at that time; it is asked for once per table and thrice per job."""
    try:
        return RunPlan.load(RESULTS.plan)
    except DataError as error:
        end(error)


def current_plan():
    """The plan that lies there. On a compute node nothing is known of checkpoints: the file must do."""
    return load_plan(RESULTS.plan.stat().st_mtime_ns)


def read_plan():
    """The current plan, once its checkpoint has run."""
    checkpoints.plan.get()
    return current_plan()


def planned_in(*directories):
    """The function for the paths of what the plan is to make in these directories of the results, or in all."""

    def paths(wildcards):
        plan = read_plan()
        made = [table_path(name, in_parts=str(name) in plan.in_parts) for name in map(TableName.parse, plan.tables)]
        kept = (path for path in made if not directories or path.relative_to(RESULTS.root).parts[0] in directories)
        return list(dict.fromkeys(map(str, kept)))

    return paths


def statuses(wildcards):
    """The status files of all samples that were not refused."""
    refused = read_plan().refused
    return [str(RESULTS.status(sample)) for sample in SAMPLES if sample not in refused]


def table_path(name, in_parts):
    """Where a table of the plan lies."""
    return RESULTS.table_parts(name) if in_parts else RESULTS.made(name)


tables = planned_in()


def table_receipts(wildcards):
    """The receipts of the jobs that a feature table or a residue file needs."""
    return named_receipts(TableName(wildcards.sample, wildcards.model, wildcards.output))


def named_receipts(name):
    """The receipts of the jobs that what has that name in the plan needs."""
    plan = read_plan()
    left_out = name.sample in plan.refused or name.model in plan.refused_models
    return [] if left_out else expand(RECEIPT, job=plan.tables[str(name)])


def sample_receipts(wildcards):
    """The receipts of the jobs that any table of a sample needs, but for that of the variants."""
    needs = {TableName.parse(name): jobs for name, jobs in read_plan().tables.items()}
    own = [jobs for name, jobs in needs.items() if name.sample == wildcards.sample and name.file_stem != VARIANTS]
    return expand(RECEIPT, job=sorted(set().union(*own)))


def variant_receipts(wildcards):
    """The receipts of the jobs that the table of a sample's variants needs."""
    names = [TableName(wildcards.sample, model, VARIANTS) for model in MODELS]
    return sorted(set().union(*map(named_receipts, names)))


def table_spec(wildcards):
    """The part of a model's config that concerns one table, so that another layer leaves it alone."""
    layer, _, representation = wildcards.output.removeprefix("layer").rpartition(".")
    return json.dumps(
        numeric_config(wildcards.model) | {"layers": [int(layer or -1)], "representations": [representation]}
    )


def likelihoods_spec(wildcards):
    """The part of a model's config that concerns its likelihoods."""
    return json.dumps(numeric_config(wildcards.model) | {"layers": [-1], "representations": ["likelihoods"]})


def length_spec(wildcards):
    """The part of a model's config that decides how its masked copies are cut."""
    keys = ("long_sequences", "max_length", "window_overlap")
    treatment = {key: MODELS[wildcards.model][key] for key in keys}
    return json.dumps(treatment | {"layers": [-1], "representations": [], "precision": "auto"})


def named_positions(wildcards):
    """The variants, where only the positions that they name are to be masked."""
    return [] if wildcards.model in MASKING else expand(MUTANTS, sample=wildcards.sample)


def weights_directory(wildcards):
    """Where weights that are fetched are put."""
    return str(Path(STORE, "weights"))


def local_weights(model):
    """The weights, with the settings beside them, and the adapter, where they are the user's own."""
    weights, adapter = (MODELS[model].get(key) for key in ("weights", "adapter"))
    beside = Path(weights).with_name("config.json")
    settings = [str(beside)] if is_path(weights) and Path(weights).is_file() and beside.is_file() else []
    return ([weights, *settings] if is_path(weights) else []) + ([adapter] if adapter else [])


def adapter_option(wildcards):
    """The option that merges an adapter into the weights, where the config has one."""
    adapter = MODELS[wildcards.model].get("adapter")
    return [f"--adapter={adapter}"] if adapter else []


def expected_checksum(wildcards):
    """The option that checks the weights, where the config has a checksum."""
    checksum = MODELS[wildcards.model].get("sha256")
    return ["--sha256", checksum] if checksum else []


def wants_contacts(wildcards):
    """The option that brings a contact head with the weights, where the config asks for contacts."""
    return ["--contacts"] if "contacts" in MODELS[wildcards.model]["representations"] else []


def quarantine(wildcards):
    """What the store has lost to damage: more of it since the last plan is a reason to plan again."""
    directory = Path(STORE, "quarantine")
    return [str(directory)] if directory.exists() and not re.search("[{}]", STORE) else []


def planned(wildcards):
    """What the plan says of a worker job."""
    return current_plan().jobs[wildcards.job]


def job_attention(wildcards):
    """The attention kernel that the config asks for each of the job's models."""
    return ",".join(f"{model}={MODELS[model]['attention']}" for model in planned(wildcards).models)


def attempt_before(wildcards, attempt):
    """The last heartbeat of a job's attempt before this one; None if there was none, or none that can be read."""
    path = RESULTS.heartbeat(wildcards.job)
    try:
        return Heartbeat.load(path) if attempt > 1 and path.exists() else None
    except DataError:
        return None


def job_minutes(wildcards, attempt):
    """Minutes to ask for."""
    last = attempt_before(wildcards, attempt)
    return allocation.minutes(planned(wildcards).minutes, last, config["workers"].get("max_minutes"))


def job_memory(wildcards, attempt):
    """Megabytes to ask for."""
    last = attempt_before(wildcards, attempt)
    return allocation.memory_mb(planned(wildcards).memory_mb, last, config["workers"].get("max_mem_mb"))


def contig_tables(wildcards):
    """The tables of contigs of the samples that have some, where the config asks for them."""
    return [
        str(RESULTS.contigs(table))
        for table in map(TableName.parse, read_plan().tables if config["contigs"] else ())
        if of_contigs(table.sample) and re.fullmatch(file_stem_pattern(VECTORS), table.file_stem)
    ]


def exports(wildcards):
    """What the exports that the config asks for make of the tables, the variants and the samples with contigs."""
    plan = read_plan()
    paths = {
        str(RESULTS.exports(sample) / path)
        for name in EXPORTS.keys() & set(config["exports"])
        if EXPORTS[name].of_contigs
        for path in EXPORTS[name].layouts[0].paths
        for sample in SAMPLES
        if of_contigs(sample) and sample not in plan.refused
    }
    for table in map(TableName.parse, plan.tables):
        directory = RESULTS.exports(table.sample, table.model)
        for name in EXPORTS.keys() & set(config["exports"]):
            for layout in EXPORTS[name].layouts:
                if re.fullmatch(layout.file_stems, table.file_stem):
                    paths.add(str(directory / layout.paths[0].format(output=table.file_stem)))
    if "proteingym" in config["exports"]:
        paths |= {str(RESULTS.proteingym(sample)) for sample in SAMPLES if sample not in plan.refused}
    return sorted(paths)


def held_receipts(layout):
    """The function for the receipts of the jobs that need to be done for all outputs that a layout can hold."""

    def receipts(wildcards):
        needs = read_plan().tables.items()
        names = {TableName.parse(name): jobs for name, jobs in needs}
        return expand(
            RECEIPT,
            job=sorted(
                {
                    job
                    for name, jobs in names.items()
                    if (name.sample, name.model) == (wildcards.sample, wildcards.model)
                    and re.fullmatch(layout.file_stems, name.file_stem)
                    for job in jobs
                }
            ),
        )

    return receipts


def held_spec(layout):
    """The function for the part of a model's config that concerns the outputs that a layout can hold."""

    def spec(wildcards):
        numeric = numeric_config(wildcards.model)
        held = [name for name in numeric["representations"] if name in layout.representations]
        return json.dumps(numeric | {"representations": held})

    return spec


# What a run may be asked for by name. Of the rules that make these files, Snakemake takes no name as a target: they have
# wildcards.
TARGETS = {
    "all": [tables, contig_tables, exports, statuses],
    "features": [planned_in("features")],
    "residues": [planned_in("residues")],
    "likelihoods": [planned_in("likelihoods")],
    "variants": [planned_in("variants")],
    "contigs": [contig_tables],
    "exports": [exports],
    "status": [statuses],
}
# The rules that Snakemake knows of before there is a plan.
BEFORE_PLAN = {"fetch_model", "ingest", "mask", "match_variants", "plan", "preflight", "report"}
IS_MODULE = not workflow.modifier.is_main_snakefile()


def uncut(wildcards):
    """No inputs; but ends what would be cut short by options that act before there is a plan, and seem to be done."""
    settings = workflow.dag_settings
    cutting = {
        "--until": set(settings.until) - BEFORE_PLAN - TARGETS.keys(),
        "--omit-from": settings.omit_from,
        "--batch": settings.batch,
    }
    for option in [option for option, value in cutting.items() if value and not IS_MODULE]:
        end(
            ConfigError(
                f"{option}: what there is to do is known only after the plan; give targets instead, of "
                f"{', '.join(TARGETS)}, or paths of outputs"
            )
        )
    return []


def refusals(target):
    """The function for what is never made: so a run fails that left something out, after all else of the target is made."""
    return lambda wildcards: [str(RESULTS.refused(target))] if read_plan().left_out else []


def target_files(wildcards):
    """All that a target stands for, but for the refusals."""
    return [path for files in TARGETS[wildcards.target] for path in files(wildcards)]
