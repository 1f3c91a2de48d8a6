checkpoint plan:
    input:
        sequences=expand(SEQUENCES, sample=SAMPLES),
        descriptors=expand(DESCRIPTOR, model=MODELS),
        samples=config["samples"],
        quarantine=quarantine,
    output:
        directory=directory(PLAN),
    log:
        "logs/plan/plan.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan.tsv"
    retries: 0
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
        numerics=NUMERICS_VERSION,
        sequences=lambda wildcards, input: parent(input.sequences),
        descriptors=lambda wildcards, input: parent(input.descriptors),
        receipts=f"{RESULTS}/receipts",
        store=STORE,
        part_mb=config["tables"]["part_mb"],
    shell:
        'python "$ESMFLOW"/plan.py'
        " --log {log:q} --models {params.models:q} --samples {input.samples:q}"
        " --sequences {params.sequences:q} --descriptors {params.descriptors:q} --store {params.store:q}"
        " --receipts {params.receipts:q} --output {output.directory:q}"
        " --target-minutes {resources.target_minutes} --max-jobs {resources.max_jobs}"
        " --gpus-per-job {resources.gpus_per_job} --threads {resources.embed_threads}"
        " --tokens-per-pack {resources.tokens_per_pack} --mix-models {resources.mix_models}"
        " --part-mb {params.part_mb} --local {resources.local}"


localrules:
    preflight,


rule preflight:
    input:
        PLAN,
    log:
        "logs/preflight/preflight.log",
    conda:
        "../envs/cpu.yaml"
    params:
        store=STORE,
    shell:
        'python "$ESMFLOW"/preflight.py --log {log:q} --plan {input:q} --store {params.store:q}'
