rule embed:
    input:
        str(RESULTS.job("{job}")),
    output:
        RECEIPT,
    log:
        "logs/embed/{job}.log",
    benchmark:
        str(RESULTS.benchmark("embed/{job}"))
    conda:
        "../envs/gpu.yaml" if config["workers"]["gpus_per_job"] else "../envs/cpu.yaml"
    threads: EMBED_THREADS
    resources:
        gpu=config["workers"]["gpus_per_job"],
        gpus_per_job=config["workers"]["gpus_per_job"],
        mem_mb=job_memory,
        runtime=job_minutes,
        attention=job_attention,
        tokens_per_pack=str(config["workers"]["tokens_per_pack"]),
        processes=config["workers"]["processes"],
    params:
        numerics=NUMERICS_VERSION,
        store=store,
        heartbeats=str(RESULTS.heartbeats),
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/embed.py'
        " --log {log:q} --job={input:q} --store={params.store:q} --receipt={output:q}"
        " --heartbeats={params.heartbeats:q} ${{ESMFLOW_JOB_BEGAN:+--time-limit {resources.runtime} --job-began $ESMFLOW_JOB_BEGAN}}"
        " --gpus {resources.gpus_per_job} --threads {threads} --processes {resources.processes}"
        " --tokens-per-pack {resources.tokens_per_pack} --attention {resources.attention}"
