rule mask:
    input:
        renew(MASKED, of_copies),
        named_positions,
        sequences=SEQUENCES,
    output:
        copies=MASKED,
        made_for=record(MASKED),
    log:
        "logs/mask/{sample}/{model}.log",
    benchmark:
        str(RESULTS.benchmark("mask/{sample}/{model}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        mutants=lambda wildcards: [f"--mutants={path}" for path in named_positions(wildcards)],
        spec=length_spec,
        made_for=of_copies,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/mask.py'
        " --log {log:q} --sequences={input.sequences:q} {params.mutants:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --copies={output.copies:q}"
        f"{RECORD}"


rule masked_marginals:
    input:
        renew(RESIDUES, of_table),
        table_receipts,
        catalog=CATALOG,
        copies=MASKED,
        descriptor=DESCRIPTOR,
    output:
        file=RESIDUES,
        made_for=record(RESIDUES),
    log:
        "logs/residues/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"masked_marginals/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(FROM_COPIES),
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        made_for=of_table,
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/masked_marginals.py'
        " --log {log:q} --catalog={input.catalog:q} --copies={input.copies:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q} --store={params.store:q} --file={output.file:q}"
        f"{RECORD}"


rule likelihood_table:
    input:
        renew(LIKELIHOODS, of_likelihoods),
        lambda wildcards: named_receipts(TableName(wildcards.sample, wildcards.model, "likelihoods")),
        catalog=CATALOG,
        copies=lambda wildcards: expand(MASKED, **wildcards) if wildcards.model in MASKING else [],
        descriptor=DESCRIPTOR,
    output:
        table=LIKELIHOODS,
        made_for=record(LIKELIHOODS),
    log:
        "logs/likelihoods/{sample}/{model}.log",
    benchmark:
        str(RESULTS.benchmark("likelihoods/{sample}/{model}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        copies=lambda wildcards, input: [f"--copies={path}" for path in input.copies],
        spec=likelihoods_spec,
        made_for=of_likelihoods,
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/likelihoods.py'
        " --log {log:q} --catalog={input.catalog:q} {params.copies:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q} --store={params.store:q} --table={output.table:q}"
        f"{RECORD}"


rule match_variants:
    input:
        renew(MUTANTS, of_mutants),
        catalog=CATALOG,
        sequences=SEQUENCES,
        sheets=inputs([config["samples"], *VARIANT_SHEET]),
    output:
        mutants=MUTANTS,
        made_for=record(MUTANTS),
    log:
        "logs/match_variants/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("match_variants/{sample}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        samples=samples,
        variants=lambda wildcards: VARIANT_SHEET,
        made_for=of_mutants,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/match_variants.py'
        " --log {log:q} --variants={params.variants:q} --samples={params.samples:q} --sample {wildcards.sample:q}"
        " --catalog={input.catalog:q} --sequences={input.sequences:q} --mutants={output.mutants:q}"
        f"{RECORD}"


rule variant_table:
    input:
        renew(VARIANT_TABLE, of_variants),
        variant_receipts,
        MUTANTS,
        expand(MASKED, model=MODELS, allow_missing=True),
        expand(DESCRIPTOR, model=MODELS),
    output:
        table=VARIANT_TABLE,
        made_for=record(VARIANT_TABLE),
    log:
        "logs/variants/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("variants/{sample}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        made_for=of_variants,
        results=lambda wildcards, output: str(Path(output.table).parents[1]),
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/variants.py'
        " --log {log:q} --results={params.results:q} --sample {wildcards.sample:q} --models {params.models:q}"
        " --store={params.store:q}"
        f"{RECORD}"


rule proteingym:
    input:
        renew(PROTEINGYM, of_variants),
        mutants=MUTANTS,
        sequences=SEQUENCES,
        table=VARIANT_TABLE,
    output:
        scores=directory(PROTEINGYM),
        made_for=record(PROTEINGYM),
    log:
        "logs/proteingym/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("proteingym/{sample}"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        made_for=of_variants,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/proteingym.py'
        " --log {log:q} --mutants={input.mutants:q} --sequences={input.sequences:q} --table={input.table:q}"
        " --directory={output.scores:q}"
        f"{RECORD}"
