rule report:
    input:
        renew(REPORT, of_report),
        tables,
        statuses,
        inputs([config["samples"]]),
    output:
        page=report(REPORT, category="report", labels={"page": "report"}),
        made_for=record(REPORT),
    log:
        "logs/report/report.log",
    benchmark:
        str(RESULTS.benchmark("report"))
    retries: 0
    localrule: True
    conda:
        "../envs/cpu.yaml"
    params:
        results=lambda wildcards, output: str(Path(output.page).parents[1]),
        config=lambda wildcards: json.dumps(config),
        samples=samples,
        made_for=of_report,
    shell:
        '"$ESMFLOW_PYTHON" "$ESMFLOW"/report.py'
        " --log {log:q} --results={params.results:q} --samples={params.samples:q} --config {params.config:q}"
        " --page={output.page:q}"
        f"{RECORD}"
