"""The steps of the workflow, file to file: one module per rule file, one function per rule, no Snakemake inside."""
