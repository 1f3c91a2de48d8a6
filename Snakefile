from snakemake.utils import min_version

min_version("9.0")


if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/functions.smk"
include: "rules/made_for.smk"
include: "rules/ingest.smk"
include: "rules/models.smk"
include: "rules/likelihoods.smk"
include: "rules/plan.smk"
include: "rules/embed.smk"
include: "rules/features.smk"
include: "rules/contigs.smk"
include: "rules/exports.smk"
include: "rules/refused.smk"
include: "rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        *PRODUCTS,
        refusals,
