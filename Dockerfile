# convatlas in containers. Three targets:
#   cpu     `docker build --target cpu --build-arg TORCH=cpu -t convatlas .`, without CUDA's libraries; then
#           `docker run --rm -v "$PWD/out:/app/out" convatlas`
#   cuda    the same for `docker run --gpus all`: the wheels of requirements.lock carry CUDA, the host lends its driver
#   server  MLflow's tracking server with the drivers of PostgreSQL and S3; compose.yaml starts it
ARG PYTHON=python:3.11.11-slim-bookworm

FROM ${PYTHON} AS server
RUN pip install --no-cache-dir mlflow==3.17.2 psycopg2-binary==2.9.13 boto3==1.44.5 \
    && useradd --create-home --uid 1000 mlflow
USER 1000
WORKDIR /home/mlflow
EXPOSE 5000
ENTRYPOINT ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]

FROM ${PYTHON} AS base
# git: DVC and the commit in each run's environment.json; make: the entry to everything; g++: torch.compile
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 convatlas \
    && mkdir /app \
    && chown convatlas /app
USER 1000
WORKDIR /app
COPY --chown=convatlas requirements.lock pyproject.toml Makefile README.md ./
COPY --chown=convatlas src ./src
ARG TORCH=cuda
RUN make setup TORCH=${TORCH}
COPY --chown=convatlas . .
# Volumes take the owner of what they cover.
RUN mkdir -p data runs
ENV PATH="/app/.venv/bin:$PATH"
CMD ["make", "repro"]

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM base AS cpu
