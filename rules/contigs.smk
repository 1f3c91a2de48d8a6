localrules:
    contigs,


rule contigs:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        str(RESULTS.contigs(TABLE)),
    log:
        "logs/contigs/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"contigs/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(VECTORS),
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        poolings=config["contigs"],
        numerics=NUMERICS_VERSION,
        store=store,
    shell:
        'python "$ESMFLOW"/contigs.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --pooling {params.poolings:q} --table={output:q}"
