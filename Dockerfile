# convatlas in a container: `docker build -t convatlas . && docker run --rm -v "$PWD/out:/app/out" convatlas`
# The same image serves CPU and GPU (`docker run --gpus all ...`): the wheels in requirements.lock carry CUDA.
FROM python:3.11.11-slim-bookworm

# git: DVC and the commit in each run's environment.json; make: the entry to everything
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 convatlas && mkdir /app && chown convatlas /app
USER convatlas
WORKDIR /app

COPY --chown=convatlas requirements.lock pyproject.toml Makefile README.md ./
COPY --chown=convatlas src ./src
RUN make setup
COPY --chown=convatlas . .

ENV PATH="/app/.venv/bin:$PATH"
CMD ["make", "repro"]
