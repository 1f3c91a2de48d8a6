rule features:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        TABLE,
    log:
        "logs/features/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/features/{{sample}}/{{model}}/{{output}}.tsv"
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=STORE,
        parts=[],
    shell:
        'python "$ESMFLOW"/features.py'
        " --log {log:q} --catalog {input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor {input.descriptor:q}"
        " --store {params.store:q} --table {output:q} {params.parts:q}"


use rule features as features_in_parts with:
    output:
        directory(TABLE_PARTS),
    log:
        "logs/features/{sample}/{model}/{output}.parts.log",
    benchmark:
        f"{RESULTS}/benchmarks/features/{{sample}}/{{model}}/{{output}}.parts.tsv"
    params:
        parts=["--part-mb", str(config["tables"]["part_mb"])],


rule residues:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        RESIDUES,
    log:
        "logs/residues/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/residues/{{sample}}/{{model}}/{{output}}.tsv"
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=STORE,
    shell:
        'python "$ESMFLOW"/residues.py'
        " --log {log:q} --catalog {input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor {input.descriptor:q}"
        " --store {params.store:q} --file {output:q}"


rule status:
    input:
        sample_receipts,
        catalog=CATALOG,
        descriptors=expand(DESCRIPTOR, model=MODELS),
    output:
        report(STATUS, category="status", labels={"sample": "{sample}"}),
    log:
        "logs/status/{sample}.log",
    benchmark:
        f"{RESULTS}/benchmarks/status/{{sample}}.tsv"
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        numerics=NUMERICS_VERSION,
        descriptors=lambda wildcards, input: parent(input.descriptors),
        store=STORE,
    shell:
        'python "$ESMFLOW"/status.py'
        " --log {log:q} --catalog {input.catalog:q} --models {params.models:q}"
        " --descriptors {params.descriptors:q} --store {params.store:q} --status {output:q}"
