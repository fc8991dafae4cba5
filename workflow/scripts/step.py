"""The one script of all rules: it runs the step of the rule's name.

By hand, e.g. in a debugger: ``python workflow/scripts/step.py RULE [WILDCARD=VALUE ...] [configfile=FILE]``.
"""

from labelloop.base.scripting import job

snakemake = job(globals())

from labelloop.steps import run_step

run_step(snakemake)
