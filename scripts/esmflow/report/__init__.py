"""The report: one page on a run."""
