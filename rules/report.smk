localrules:
    report,


rule report:
    input:
        tables,
        expand(STATUS, sample=SAMPLES),
        samples=config["samples"],
    output:
        report(f"{RESULTS}/report/index.html", category="report", labels={"page": "report"}),
    log:
        "logs/report/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
        config=json.dumps(config),
    shell:
        'python "$ESMFLOW"/report.py'
        " --log {log:q} --results {params.results:q} --samples {input.samples:q} --config {params.config:q}"
        " --page {output:q}"
