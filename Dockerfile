# The worker, which is built where no target is named, and a local embedding server:
#   docker build -t embedfleet .
#   docker build --target embeddings -t embedfleet-embeddings .
# A digest pins the base: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS base
ARG UV_VERSION=0.13.9
ENV UV_CACHE_DIR=/root/.cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /opt/uv \
    && /opt/uv/bin/pip install --disable-pip-version-check --quiet uv==${UV_VERSION} \
    && python -m venv --without-pip /opt/embedfleet
WORKDIR /src
COPY pyproject.toml requirements.lock ./
# What pyproject.toml asks for, without extras and groups, as the lock has it, by its hashes.
RUN --mount=type=cache,target=/root/.cache/uv /opt/uv/bin/uv pip install --quiet \
    --python /opt/embedfleet/bin/python --require-hashes --compile-bytecode \
    --requirements pyproject.toml --constraints requirements.lock

FROM base AS build
COPY README.md LICENSE ./
COPY schemas schemas
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/uv /opt/uv/bin/uv pip install --quiet \
    --python /opt/embedfleet/bin/python --no-deps --compile-bytecode \
    --build-constraints requirements.lock .

FROM build AS build-embeddings
RUN --mount=type=cache,target=/root/.cache/uv /opt/uv/bin/uv pip install --quiet \
    --python /opt/embedfleet/bin/python --require-hashes --compile-bytecode \
    --requirements pyproject.toml --extra embeddings --constraints requirements.lock

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/embedfleet/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that `runAsNonRoot` can tell that it is not root.
USER 10001:10001
WORKDIR /tmp

FROM runtime AS embeddings
LABEL org.opencontainers.image.title="embedfleet-embeddings" \
      org.opencontainers.image.description="A local embedding server for embedfleet that speaks OpenAI's protocol." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-embeddings /opt/embedfleet /opt/embedfleet
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=15s --start-period=30s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=3)"]
ENTRYPOINT ["python", "-m", "worker.embedded.embedding_server"]
CMD ["--host", "0.0.0.0", "--port", "8080"]

FROM runtime AS worker
ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="embedfleet" \
      org.opencontainers.image.description="Workers that turn document events on Kafka into searchable vectors in PostgreSQL." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /opt/embedfleet /opt/embedfleet
# The port is for probes and scrapes; nothing is published by itself.
ENV EMBEDFLEET_TELEMETRY_ADMIN_HOST=0.0.0.0
EXPOSE 9464
STOPSIGNAL SIGTERM
# The worker is given 3 s to answer; the rest is for a busy machine to start the command.
HEALTHCHECK --interval=15s --timeout=20s --start-period=60s CMD ["embedfleet", "health"]
ENTRYPOINT ["embedfleet"]
CMD ["run"]
