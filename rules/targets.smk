for target in [target for target in TARGETS if target != "all"]:

    rule:
        name:
            target
        input:
            uncut,
            *TARGETS[target],
            refusals(target),
        localrule: True


# One job for all samples and models that were refused, so that the run tells of each of them.
rule refused:
    input:
        target_files,
    output:
        str(RESULTS.refused("{target}")),
    log:
        "logs/refused/{target}.log",
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/refused.py --log {log:q} --results={params.results:q}'
