"""The steps of the workflow, file to file. A module per rule file (labels: 3), a function per rule, no Snakemake."""
