rule ingest:
    input:
        renew(CATALOG, of_catalog),
        lambda wildcards: inputs(fastas(wildcards)),
    output:
        catalog=CATALOG,
        sequences=SEQUENCES,
        made_for=record(CATALOG),
    log:
        "logs/ingest/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("ingest/{sample}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        invalid=config["invalid"],
        made_for=of_catalog,
        fastas=fastas,
        kinds=lambda wildcards: [file.kind for file in SAMPLES[wildcards.sample]],
        contigs=contig_options,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/ingest.py'
        " --log {log:q} --sample {wildcards.sample:q} --catalog={output.catalog:q}"
        " --sequences={output.sequences:q} --invalid {params.invalid:q} --refuse --kind {params.kinds:q}"
        " {params.contigs:q} -- {params.fastas:q}"
        f"{RECORD}"
