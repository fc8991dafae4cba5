# The environment of all rules, for `snakemake --sdm apptainer`. labelloop itself comes from the project's folder, in which
# snakemake runs. From that folder:
#
#     docker build --file envs/workflow.Dockerfile --tag labelloop .
#     apptainer build envs/labelloop.sif docker-daemon:labelloop:latest
FROM python:3.11-slim
COPY envs/constraints.txt pyproject.toml README.md /tmp/labelloop/
COPY src /tmp/labelloop/src
RUN pip install --no-cache-dir --constraint /tmp/labelloop/constraints.txt '/tmp/labelloop[slurm]' \
    && pip uninstall --yes labelloop && rm -r /tmp/labelloop
ENV PYTHONPATH=src PYTHONUTF8=1
