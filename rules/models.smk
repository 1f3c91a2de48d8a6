localrules:
    fetch_model,


rule fetch_model:
    input:
        lambda wildcards: inputs(local_weights(wildcards)),
    output:
        DESCRIPTOR,
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        str(RESULTS.benchmark("fetch_model/{model}"))
    conda:
        "../envs/cpu.yaml"
    params:
        weights=lambda wildcards: MODELS[wildcards.model]["weights"],
        checksum=expected_checksum,
        adapter=adapter_option,
        contacts=wants_contacts,
        stamps=lambda wildcards: stamps(local_weights(wildcards)),
        directory=lambda wildcards: str(Path(STORE, "weights")),
    shell:
        'python "$ESMFLOW"/fetch_model.py'
        " --log {log:q} --model {wildcards.model:q} --weights={params.weights:q}"
        " {params.checksum:q} {params.adapter:q} {params.contacts:q} --directory={params.directory:q} --descriptor={output:q}"
