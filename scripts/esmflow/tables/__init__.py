"""What is made of the store: feature tables, residue files, status files and exports."""
