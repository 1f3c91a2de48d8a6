for export_name, export in EXPORTS.items():
    for layout in () if export.of_contigs else export.layouts:
        export_rule = "_".join(filter(None, ["export", export_name, layout.unit]))
        export_stem = str(TABLE if layout.of_one_output else Path("{sample}", "{model}"))
        export_spec = table_spec if layout.of_one_output else held_spec(layout)
        export_digest = of_values(export_spec, export_name)
        export_paths = [str(RESULTS.exports("{sample}", "{model}") / path) for path in layout.paths]

        rule:
            name:
                export_rule
            input:
                table_receipts if layout.of_one_output else held_receipts(layout),
                renew(export_paths[0], export_digest),
                catalog=CATALOG,
                descriptor=DESCRIPTOR,
                sequences=SEQUENCES if export.needs_residues else [],
            output:
                files=directory(export_paths[0]) if layout.directory else export_paths,
                made_for=record(export_paths[0]),
            log:
                f"logs/{export_rule}/{export_stem}.log",
            benchmark:
                str(RESULTS.benchmark(f"{export_rule}/{export_stem}"))
            wildcard_constraints:
                output=layout.file_stems,
            retries: 0
            localrule: True
            conda:
                "../envs/cpu.yaml"
            params:
                format=export_name,
                sequences=lambda wildcards, input: [f"--sequences={input.sequences}"] if input.sequences else [],
                spec=export_spec,
                made_for=export_digest,
                store=store,
            shell:
                '"$ESMFLOW_PYTHON" "$ESMFLOW"/export.py'
                " --log {log:q} --format {params.format} --catalog={input.catalog:q} {params.sequences:q}"
                " --model {wildcards.model:q} --spec {params.spec:q} --descriptor={input.descriptor:q}"
                " --store={params.store:q} -- {output.files:q}"
                f"{RECORD}"


for export_name, export in EXPORTS.items():
    for layout in export.layouts if export.of_contigs else ():
        export_paths = [str(RESULTS.exports("{sample}") / path) for path in layout.paths]

        rule:
            name:
                f"export_{export_name}"
            input:
                renew(export_paths[0], of_catalog),
                catalog=CATALOG,
            output:
                files=export_paths,
                made_for=record(export_paths[0]),
            log:
                f"logs/export_{export_name}/{{sample}}.log",
            benchmark:
                str(RESULTS.benchmark(f"export_{export_name}/{{sample}}"))
            retries: 0
            localrule: True
            conda:
                "../envs/cpu.yaml"
            params:
                format=export_name,
                made_for=of_catalog,
            shell:
                '"$ESMFLOW_PYTHON" "$ESMFLOW"/export.py'
                " --log {log:q} --format {params.format} --catalog={input.catalog:q} -- {output.files:q}"
                f"{RECORD}"
