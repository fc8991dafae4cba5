# The environment of all rules, for `--sdm apptainer`: Snakemake, labelloop as a wheel, and the tested versions of all they
# need. A checkout's own code goes before the wheel, as snakemake runs in its root. Snakemake looks for envs/labelloop.sif in
# the folder in which it is started. To build it, from a checkout's root:
#
#     docker build --file envs/workflow.Dockerfile --tag labelloop .
#     apptainer build envs/labelloop.sif docker-daemon:labelloop:latest
FROM python:3.11-slim AS wheel
COPY Snakefile setup.py pyproject.toml README.md LICENSE /labelloop/
COPY config /labelloop/config
COPY profiles /labelloop/profiles
COPY workflow /labelloop/workflow
COPY src /labelloop/src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /labelloop

FROM python:3.11-slim
COPY envs/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /tmp/wheel/*.whl)[slurm]" \
    && rm -r /tmp/wheel
ENV PYTHONPATH=src PYTHONUTF8=1
