localrules:
    features,
    features_in_parts,
    residues,
    status,


rule features:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        str(RESULTS.table(TABLE)),
    log:
        "logs/features/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"features/{TABLE}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=store,
        parts=[],
    shell:
        'python "$ESMFLOW"/features.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --table={output:q} {params.parts:q}"


use rule features as features_in_parts with:
    output:
        directory(str(RESULTS.table_parts(TABLE))),
    log:
        "logs/features/{sample}/{model}/{output}.parts.log",
    benchmark:
        str(RESULTS.benchmark(f"features/{TABLE}.parts"))
    params:
        parts=["--part-mb", str(config["tables"]["part_mb"])],


rule residues:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        str(RESULTS.residues(TABLE)),
    log:
        "logs/residues/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"residues/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(set(NAMES) - set(FROM_COPIES)),
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=store,
    shell:
        'python "$ESMFLOW"/residues.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --file={output:q}"


rule status:
    input:
        sample_receipts,
        expand(DESCRIPTOR, model=MODELS),
        expand(MASKED, model=MASKING, allow_missing=True),
        CATALOG,
    output:
        report(STATUS, category="status", labels={"sample": "{sample}"}),
    log:
        "logs/status/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("status/{sample}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        numerics=NUMERICS_VERSION,
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
        store=store,
    shell:
        'python "$ESMFLOW"/status.py'
        " --log {log:q} --results={params.results:q} --sample {wildcards.sample:q} --models {params.models:q}"
        " --store={params.store:q}"
