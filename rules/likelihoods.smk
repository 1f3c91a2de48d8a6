localrules:
    mask,
    masked_marginals,
    likelihoods,
    match_variants,
    variants,
    proteingym,


rule mask:
    input:
        named_positions,
        sequences=SEQUENCES,
    output:
        MASKED,
    log:
        "logs/mask/{sample}/{model}.log",
    benchmark:
        str(RESULTS.benchmark("mask/{sample}/{model}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        mutants=lambda wildcards: [f"--mutants={path}" for path in named_positions(wildcards)],
        spec=length_spec,
        cleaning=CLEANING_VERSION,
    shell:
        'python "$ESMFLOW"/mask.py'
        " --log {log:q} --sequences={input.sequences:q} {params.mutants:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --copies={output:q}"


rule masked_marginals:
    input:
        table_receipts,
        catalog=CATALOG,
        copies=MASKED,
        descriptor=DESCRIPTOR,
    output:
        str(RESULTS.residues(TABLE)),
    log:
        "logs/residues/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"masked_marginals/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(FROM_COPIES),
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=store,
    shell:
        'python "$ESMFLOW"/masked_marginals.py'
        " --log {log:q} --catalog={input.catalog:q} --copies={input.copies:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q} --store={params.store:q} --file={output:q}"


rule likelihoods:
    input:
        lambda wildcards: named_receipts(TableName(wildcards.sample, wildcards.model, "likelihoods")),
        catalog=CATALOG,
        copies=lambda wildcards: expand(MASKED, **wildcards) if wildcards.model in MASKING else [],
        descriptor=DESCRIPTOR,
    output:
        str(RESULTS.likelihoods(TABLE)),
    log:
        "logs/likelihoods/{sample}/{model}.log",
    benchmark:
        str(RESULTS.benchmark("likelihoods/{sample}/{model}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        copies=lambda wildcards, input: [f"--copies={path}" for path in input.copies],
        spec=likelihoods_spec,
        numerics=NUMERICS_VERSION,
        store=store,
    shell:
        'python "$ESMFLOW"/likelihoods.py'
        " --log {log:q} --catalog={input.catalog:q} {params.copies:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q} --store={params.store:q} --table={output:q}"


rule match_variants:
    input:
        catalog=CATALOG,
        sequences=SEQUENCES,
        sheets=inputs([config["samples"], *VARIANT_SHEET]),
    output:
        MUTANTS,
    log:
        "logs/match_variants/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("match_variants/{sample}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        samples=samples,
        variants=lambda wildcards: VARIANT_SHEET,
        stamps=lambda wildcards: stamps([samples(wildcards), *VARIANT_SHEET]),
    shell:
        'python "$ESMFLOW"/match_variants.py'
        " --log {log:q} --variants={params.variants:q} --samples={params.samples:q} --sample {wildcards.sample:q}"
        " --catalog={input.catalog:q} --sequences={input.sequences:q} --mutants={output:q}"


rule variants:
    input:
        variant_receipts,
        MUTANTS,
        expand(MASKED, model=MODELS, allow_missing=True),
        expand(DESCRIPTOR, model=MODELS),
    output:
        str(RESULTS.variants("{sample}")),
    log:
        "logs/variants/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("variants/{sample}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        numerics=NUMERICS_VERSION,
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
        store=store,
    shell:
        'python "$ESMFLOW"/variants.py'
        " --log {log:q} --results={params.results:q} --sample {wildcards.sample:q} --models {params.models:q}"
        " --store={params.store:q}"


rule proteingym:
    input:
        mutants=MUTANTS,
        sequences=SEQUENCES,
        table=str(RESULTS.variants("{sample}")),
    output:
        directory(str(RESULTS.proteingym("{sample}"))),
    log:
        "logs/proteingym/{sample}.log",
    benchmark:
        str(RESULTS.benchmark("proteingym/{sample}"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    shell:
        'python "$ESMFLOW"/proteingym.py'
        " --log {log:q} --mutants={input.mutants:q} --sequences={input.sequences:q} --table={input.table:q}"
        " --directory={output:q}"
