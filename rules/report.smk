localrules:
    report,


rule report:
    input:
        tables,
        statuses,
        inputs([config["samples"]]),
    output:
        report(str(RESULTS.report), category="report", labels={"page": "report"}),
    log:
        "logs/report/report.log",
    benchmark:
        str(RESULTS.benchmark("report"))
    retries: 0
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, output: str(Path(output[0]).parents[1]),
        config=lambda wildcards: json.dumps(config),
        samples=samples,
    shell:
        'python "$ESMFLOW"/report.py'
        " --log {log:q} --results={params.results:q} --samples={params.samples:q} --config {params.config:q}"
        " --page={output:q}"
