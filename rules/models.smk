rule fetch_model:
    input:
        renew(DESCRIPTOR, of_descriptor, unless=refused_model),
        lambda wildcards: inputs(local_weights(wildcards.model)),
    output:
        descriptor=DESCRIPTOR,
        made_for=record(DESCRIPTOR),
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        str(RESULTS.benchmark("fetch_model/{model}"))
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        weights=lambda wildcards: MODELS[wildcards.model]["weights"],
        checksum=expected_checksum,
        adapter=adapter_option,
        contacts=wants_contacts,
        directory=weights_directory,
        made_for=of_descriptor,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/fetch_model.py'
        " --log {log:q} --model {wildcards.model:q} --weights={params.weights:q}"
        " {params.checksum:q} {params.adapter:q} {params.contacts:q} --directory={params.directory:q} --descriptor={output.descriptor:q} --refuse"
        f"{RECORD}"
