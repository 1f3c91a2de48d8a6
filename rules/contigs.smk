rule contig_table:
    input:
        table_receipts,
        renew(CONTIGS, of_contigs_pooled),
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        table=CONTIGS,
        made_for=record(CONTIGS),
    log:
        "logs/contigs/{sample}/{model}/{output}.log",
    benchmark:
        str(RESULTS.benchmark(f"contigs/{TABLE}"))
    wildcard_constraints:
        output=file_stem_pattern(VECTORS),
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        spec=table_spec,
        poolings=config["contigs"],
        made_for=of_contigs_pooled,
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/contigs.py'
        " --log {log:q} --catalog={input.catalog:q} --model {wildcards.model:q}"
        " --spec {params.spec:q} --descriptor={input.descriptor:q}"
        " --store={params.store:q} --pooling {params.poolings:q} --table={output.table:q}"
        f"{RECORD}"
