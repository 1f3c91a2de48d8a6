"""What people bring: sample sheets and FASTA files, brought into catalogs."""
