localrules:
    ingest,


rule ingest:
    input:
        lambda wildcards: [file.path for file in SAMPLES[wildcards.sample]],
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
        stamps=lambda wildcards: stamps(file.path for file in SAMPLES[wildcards.sample]),
        kinds=lambda wildcards: [file.kind for file in SAMPLES[wildcards.sample]],
    shell:
        'python "$ESMFLOW"/ingest.py'
        " --log {log:q} --sample {wildcards.sample:q} --catalog {output.catalog:q}"
        " --sequences {output.sequences:q} --invalid {params.invalid:q} --refuse --kind {params.kinds:q} -- {input:q}"
