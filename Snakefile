import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

# Not workflow.basedir, which is that of a workflow that uses this one as a module.
SCRIPTS = str(Path(str(workflow.current_basedir), "scripts"))
if not Path(SCRIPTS).is_dir():
    print(
        f"error: {workflow.current_basedir}: the workflow needs its commands; clone it and give the path of its Snakefile",
        file=sys.stderr,
    )
    sys.exit(78)

if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/functions.smk"
include: "rules/made_for.smk"
include: "rules/targets.smk"


# The first rule, and so the default target, but not below a rule of a workflow that uses this one as a module.
rule all:
    input:
        uncut,
        *TARGETS["all"],
        refusals("all"),
    localrule: True


include: "rules/ingest.smk"
include: "rules/models.smk"
include: "rules/likelihoods.smk"
include: "rules/plan.smk"
include: "rules/embed.smk"
include: "rules/features.smk"
include: "rules/contigs.smk"
include: "rules/exports.smk"
include: "rules/report.smk"
