localrules:
    ingest,


rule ingest:
    input:
        lambda wildcards: inputs(fastas(wildcards)),
    output:
        catalog=CATALOG,
        sequences=SEQUENCES,
    log:
        "logs/ingest/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("ingest/{sample}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        invalid=config["invalid"],
        cleaning=CLEANING_VERSION,
        fastas=fastas,
        stamps=lambda wildcards: stamps(fastas(wildcards)),
        kinds=lambda wildcards: [file.kind for file in SAMPLES[wildcards.sample]],
        contigs=contig_options,
    shell:
        'python "$ESMFLOW"/ingest.py'
        " --log {log:q} --sample {wildcards.sample:q} --catalog={output.catalog:q}"
        " --sequences={output.sequences:q} --invalid {params.invalid:q} --refuse --kind {params.kinds:q}"
        " {params.contigs:q} -- {params.fastas:q}"
