rule feature_table:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
        renew=renew(FEATURES, of_table),
    output:
        table=FEATURES,
        made_for=record(FEATURES),
    log:
        "logs/features/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"features/{TABLE}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        made_for=of_table,
        store=store,
        parts=[],
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/features.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --table={output.table:q} {params.parts:q}"
        f"{RECORD}"


use rule feature_table as feature_table_in_parts with:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
        renew=renew(PARTS, of_parts),
    output:
        table=directory(PARTS),
        made_for=record(PARTS),
    log:
        "logs/features/{sample}/{model}/{output}.parts.log",
    benchmark:
        str(RESULTS.benchmark(f"features/{TABLE}.parts"))
    params:
        parts=["--part-mb", str(config["tables"]["part_mb"])],
        made_for=of_parts,


rule residue_file:
    input:
        table_receipts,
        renew(RESIDUES, of_table),
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        file=RESIDUES,
        made_for=record(RESIDUES),
    log:
        "logs/residues/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"residues/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(set(NAMES) - set(FROM_COPIES)),
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        made_for=of_table,
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/residues.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --file={output.file:q}"
        f"{RECORD}"


rule status_file:
    input:
        sample_receipts,
        renew(STATUS, of_status),
        expand(DESCRIPTOR, model=MODELS),
        expand(MASKED, model=MASKING, allow_missing=True),
        CATALOG,
    output:
        table=report(STATUS, category="status", labels={"sample": "{sample}"}),
        made_for=record(STATUS),
    log:
        "logs/status/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("status/{sample}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        made_for=of_status,
        results=lambda wildcards, output: str(Path(output.table).parents[1]),
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/status.py'
        " --log {log:q} --results={params.results:q} --sample {wildcards.sample:q} --models {params.models:q}"
        " --store={params.store:q}"
        f"{RECORD}"
