import gc
import threading

from snakemake.utils import min_version

min_version("9.0")

# What Snakemake has imported stays: to look through it for garbage again and again takes a fifth of a short run.
gc.freeze()


if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/ingest.smk"
include: "rules/models.smk"
include: "rules/plan.smk"
include: "rules/embed.smk"
include: "rules/features.smk"
include: "rules/exports.smk"
include: "rules/report.smk"


localrules:
    all,
    ingest,
    fetch_model,
    plan,
    features,
    features_in_parts,
    residues,
    status,
    export_csv,
    export_npy,
    export_uniprot_h5_per_protein,
    export_uniprot_h5_per_residue,
    export_fair_esm_pt,
    export_bio_embeddings,
    export_anndata,


rule all:
    default_target: True
    input:
        tables,
        exports,
        expand(STATUS, sample=SAMPLES),


onsuccess:
    # Snakemake's timers have nothing left to wake, but would hold the end up for a second.
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
