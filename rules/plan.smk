checkpoint plan:
    input:
        renew(PLAN, of_plan),
        expand(SEQUENCES, sample=SAMPLES),
        expand(DESCRIPTOR, model=MODELS),
        expand(MASKED, sample=SAMPLES, model=MODELS if VARIANT_SHEET else MASKING),
        expand(MUTANTS, sample=SAMPLES if VARIANT_SHEET else []),
        quarantine,
        inputs([config["samples"]]),
    output:
        directory=directory(PLAN),
        made_for=record(PLAN),
    log:
        "logs/plan/plan.log",
    benchmark:
        str(RESULTS.benchmark("plan"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    resources:
        target_minutes=str(config["sharding"]["target_minutes"]),
        max_jobs=str(config["workers"]["max_jobs"]),
        gpus_per_job=str(config["workers"]["gpus_per_job"]),
        mix_models=str(config["workers"]["mix_models"]),
        local=str(workflow.local_exec and not workflow.remote_exec),
        embed_threads=str(EMBED_THREADS),
        tokens_per_pack=str(config["workers"]["tokens_per_pack"]),
    params:
        models=json.dumps({model: numeric_config(model) for model in MODELS}),
        made_for=of_plan,
        results=lambda wildcards, output: str(Path(output.directory).parent),
        store=store,
        part_mb=config["tables"]["part_mb"],
        samples=samples,
        variants=["--variants"] if VARIANT_SHEET else [],
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/plan.py'
        " --log {log:q} --results={params.results:q} --samples={params.samples:q} --models {params.models:q}"
        " --store={params.store:q}"
        " --target-minutes {resources.target_minutes} --max-jobs {resources.max_jobs}"
        " --gpus-per-job {resources.gpus_per_job} --threads {resources.embed_threads}"
        " --tokens-per-pack {resources.tokens_per_pack} --mix-models {resources.mix_models}"
        " --part-mb {params.part_mb} --local {resources.local} {params.variants}"
        f"{RECORD}"


rule preflight:
    input:
        PLAN,
    log:
        "logs/preflight/preflight.log",
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, input: str(Path(input[0]).parent),
        store=store,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/preflight.py --log {log:q} --results={params.results:q} --store={params.store:q}'
