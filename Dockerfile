# syntax=docker/dockerfile:1
# Build:  docker build -t outbox-worker .
# Run:    docker run --read-only --cap-drop=ALL --env-file worker.env outbox-worker
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Whatever runs, here and in the image, is named by its hash in the lock; what the worker does not need stays here.
COPY requirements.lock .
RUN pip download --require-hashes --only-binary :all: --dest /wheels --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY outbox_worker outbox_worker
COPY sql sql
RUN python -m venv /build/venv \
    && /build/venv/bin/pip install --no-index --find-links /wheels hatchling \
    && /build/venv/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /dist . \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-index --find-links /wheels /dist/outbox_worker-*.whl \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 CMD ["outbox-worker", "check"]
ENTRYPOINT ["outbox-worker"]
CMD ["run"]
