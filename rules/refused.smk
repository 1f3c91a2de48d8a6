# One job for all samples that were refused, so that the run tells of each of them.
rule refused:
    input:
        *PRODUCTS,
    output:
        str(RESULTS.refused),
    log:
        "logs/refused/refused.log",
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, output: str(Path(output[0]).parent),
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/refused.py --log {log:q} --results={params.results:q}'
