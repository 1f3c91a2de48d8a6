rule export_csv:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        f"{EXPORT}/csv/{{output}}.csv.gz",
    log:
        "logs/export_csv/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_csv/{{sample}}/{{model}}/{{output}}.tsv"
    wildcard_constraints:
        output=rf"layer\d+\.({'|'.join(VECTORS)})",
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        format="csv",
        sequences=[],
        spec=table_spec,
        numerics=NUMERICS_VERSION,
        store=STORE,
    shell:
        'python "$ESMFLOW"/export.py'
        " --log {log:q} --format {params.format} --catalog {input.catalog:q} {params.sequences:q}"
        " --model {wildcards.model:q} --spec {params.spec:q} --descriptor {input.descriptor:q}"
        " --store {params.store:q} -- {output:q}"


use rule export_csv as export_npy with:
    output:
        f"{EXPORT}/npy/{{output}}.npy",
        f"{EXPORT}/npy/{{output}}.ids.txt",
    log:
        "logs/export_npy/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_npy/{{sample}}/{{model}}/{{output}}.tsv"
    params:
        format="npy",


use rule export_csv as export_uniprot_h5_per_protein with:
    output:
        f"{EXPORT}/uniprot_h5/{{output}}/per-protein.h5",
    log:
        "logs/export_uniprot_h5_per_protein/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_uniprot_h5_per_protein/{{sample}}/{{model}}/{{output}}.tsv"
    params:
        format="uniprot_h5",


use rule export_uniprot_h5_per_protein as export_uniprot_h5_per_residue with:
    output:
        f"{EXPORT}/uniprot_h5/{{output}}/per-residue.h5",
    log:
        "logs/export_uniprot_h5_per_residue/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_uniprot_h5_per_residue/{{sample}}/{{model}}/{{output}}.tsv"
    wildcard_constraints:
        output=r"layer\d+\.per_tok",


use rule export_csv as export_fair_esm_pt with:
    input:
        fair_esm_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
    output:
        directory(f"{EXPORT}/fair_esm_pt"),
    log:
        "logs/export_fair_esm_pt/{sample}/{model}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_fair_esm_pt/{{sample}}/{{model}}.tsv"
    params:
        format="fair_esm_pt",
        spec=fair_esm_spec,


use rule export_csv as export_bio_embeddings with:
    input:
        table_receipts,
        catalog=CATALOG,
        descriptor=DESCRIPTOR,
        sequences=SEQUENCES,
    output:
        f"{EXPORT}/bio_embeddings/{{output}}/reduced_embeddings_file.h5",
        f"{EXPORT}/bio_embeddings/{{output}}/mapping_file.csv",
    log:
        "logs/export_bio_embeddings/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_bio_embeddings/{{sample}}/{{model}}/{{output}}.tsv"
    params:
        format="bio_embeddings",
        sequences=lambda wildcards, input: ["--sequences", input.sequences],


use rule export_csv as export_anndata with:
    output:
        f"{EXPORT}/anndata/{{output}}.h5ad",
    log:
        "logs/export_anndata/{sample}/{model}/{output}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_anndata/{{sample}}/{{model}}/{{output}}.tsv"
    params:
        format="anndata",
