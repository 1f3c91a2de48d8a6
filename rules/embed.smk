rule embed:
    input:
        f"{PLAN}/jobs/{{job}}.json",
    output:
        RECEIPT,
    log:
        "logs/embed/{job}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed/{{job}}.tsv"
    conda:
        "../envs/gpu.yaml" if config["workers"]["gpus_per_job"] else "../envs/cpu.yaml"
    threads: EMBED_THREADS
    resources:
        gpu=config["workers"]["gpus_per_job"],
        attention=job_attention,
        tokens_per_pack=str(config["workers"]["tokens_per_pack"]),
    params:
        numerics=NUMERICS_VERSION,
        store=STORE,
    shell:
        'python "$ESMFLOW"/embed.py'
        " --log {log:q} --job {input:q} --store {params.store:q} --receipt {output:q}"
        " --threads {threads} --tokens-per-pack {resources.tokens_per_pack}"
        " --attention {resources.attention}"
