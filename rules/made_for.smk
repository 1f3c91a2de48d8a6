# What outputs were made for. Snakemake's memory is one of a working directory, goes with .snakemake, and is not asked with
# --rerun-triggers mtime. So each output has a file of its own in the results, with a digest of all that decides its
# content. Being an output, too, it is removed before a job and written after it.

import functools
import hashlib

# The end of each command with such an output.
RECORD = ' && echo {params.made_for} > {output.made_for:q} || sh "$ESMFLOW"/ended.sh $? {log:q}'


def record(output):
    """The file that tells what an output was made for."""
    return str(RESULTS.made_for(Path(output)))


def renew(output, made_for, unless=lambda path: False):
    """An input function without inputs: if the output was made for something else, Snakemake is to make it again.

    So it is where `unless` says of the output that it is to be tried once more.
    """

    def nothing(wildcards):
        path, told = (Path(pattern.format(**wildcards)) for pattern in (output, record(output)))
        right = told.exists() and told.read_bytes().strip() == made_for(wildcards).encode()
        if path.exists() and (not right or unless(path)):
            workflow.dag.forcefiles.add(str(told))
        return []

    return nothing


def digest(*values):
    """A digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@functools.cache
def sample_digest(sample):
    """What the catalog of a sample is made for."""
    files = SAMPLES[sample]
    chunk = [config["chunk"] for file in files if KINDS[file.kind].chunks]
    texts = [(str(file.path), file.kind, str(file.code)) for file in files]
    return digest(CLEANING_VERSION, config["invalid"], texts, chunk, stamps([file.path for file in files]))


@functools.cache
def weights_digest(model):
    """What decides the numbers of a model's weights."""
    return digest(*(MODELS[model].get(key) for key in ("weights", "adapter")), stamps(local_weights(model)))


@functools.cache
def models_digest():
    """What decides the numbers of all models."""
    return digest(NUMERICS_VERSION, {model: (numeric_config(model), weights_digest(model)) for model in MODELS})


def of_catalog(wildcards):
    """What a catalog, and the file of sequences, is made for."""
    return sample_digest(wildcards.sample)


def of_descriptor(wildcards):
    """What a descriptor is made for, which tells where the weights lie."""
    options = [expected_checksum(wildcards), wants_contacts(wildcards)]
    return digest(weights_digest(wildcards.model), *options, weights_directory(wildcards))


def of_mutants(wildcards):
    """What a sample's lines of the sheet of variants are made for."""
    return digest(of_catalog(wildcards), VARIANT_SHEET, stamps(VARIANT_SHEET), list(SAMPLES))


def of_copies(wildcards):
    """What masked copies are made for."""
    variants = of_mutants(wildcards) if named_positions(wildcards) else None
    return digest(of_catalog(wildcards), length_spec(wildcards), variants)


def of_plan(wildcards):
    """What a plan is made for."""
    samples = [(sample, sample_digest(sample)) for sample in SAMPLES]
    return digest(samples, models_digest(), VARIANT_SHEET, stamps(VARIANT_SHEET), config["tables"], STORE)


def of_values(spec, *more):
    """The function for what is made of a sample and a part of a model's config."""

    def made_for(wildcards):
        model = weights_digest(wildcards.model)
        return digest(NUMERICS_VERSION, of_catalog(wildcards), model, spec(wildcards), *more)

    return made_for


of_table = of_values(table_spec)
of_parts = of_values(table_spec, config["tables"])
of_contigs_pooled = of_values(table_spec, config["contigs"])


def of_likelihoods(wildcards):
    """What a table of likelihoods is made for."""
    return of_values(likelihoods_spec, wildcards.model in MASKING)(wildcards)


def of_status(wildcards):
    """What a status file is made for."""
    return digest(of_catalog(wildcards), models_digest())


def of_variants(wildcards):
    """What the scores of variants are made for."""
    return digest(of_mutants(wildcards), models_digest())


def of_report(wildcards):
    """What the report is made for."""
    return digest(of_plan(wildcards), config)
