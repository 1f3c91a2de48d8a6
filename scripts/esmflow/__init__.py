"""The library behind esmflow's commands: protein FASTA in, tables of ESM representations out."""

__version__ = "0.2.0"
