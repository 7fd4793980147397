# The gateway (no torch) and the worker, as two images from one file:
#
#   docker build --target gateway -t mirage-server-gateway .
#   docker build --target worker  -t mirage-server-worker  --build-arg TORCH_INDEX_URL=... .
#   docker build --target worker  -t mirage-server-worker:cuda --build-arg DEVICE=cuda .
#
# TORCH_INDEX_URL: a package index with the torch build that is wanted (PyTorch's "Get started" page
# lists them). Without it the default index decides: on x86 that is the CUDA build, which runs on a
# CPU as well but is gigabytes larger. Versions are those of deploy/constraints.txt either way.
# Behind a proxy or a mirror: PIP_CONFIG_FILE as a build secret, `--secret id=pip,src=pip.conf`.
#
# Both run as user 10001 and write to /data (worlds, unless MIRAGE_STORE_URL names a bucket), /tmp
# and /cache (compiled kernels) only, so the root file system may be read-only.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/mirage/bin:$PATH


FROM base AS gateway-build
WORKDIR /src
RUN python -m venv /opt/mirage
COPY pyproject.toml README.md LICENSE ./
COPY deploy/constraints.txt deploy/
COPY service service
# The worker's package stays out: without torch it can't be imported.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-compile --constraint deploy/constraints.txt .


FROM base AS worker-build
ARG TORCH_INDEX_URL=""
WORKDIR /src
RUN python -m venv /opt/mirage
COPY deploy/constraints.txt deploy/
# torch first, as it is large and rarely changes
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-compile --constraint deploy/constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY worker worker
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-compile --constraint deploy/constraints.txt '.[worker]'


FROM base AS runtime
# tini: process 1 that passes signals on, so that SIGTERM drains also while weights are loaded
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp mirage \
    && install -d -o mirage -g mirage /data /cache
ENV MIRAGE_DATA_DIR=/data \
    MIRAGE_HOST=0.0.0.0 \
    MIRAGE_REQUIRE_KEYS=true \
    MIRAGE_PORT=8000 \
    MIRAGE_GRPC_PORT=8001 \
    MIRAGE_WORKER_METRICS_PORT=9100
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "mirage"]


FROM runtime AS worker
ARG DEVICE=cpu
# Triton, which reads memories on a GPU, compiles a small C file when it starts.
# hadolint ignore=DL3008
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    elif [ "$DEVICE" != cpu ]; then \
        echo "DEVICE=$DEVICE: give cpu or cuda" >&2; exit 1; \
    fi
COPY --from=worker-build /opt/mirage /opt/mirage
ENV MIRAGE_DEVICE=${DEVICE} \
    NUMBA_CACHE_DIR=/cache/numba \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 9100
# It answers once the model is loaded and its kernels are compiled.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['MIRAGE_WORKER_METRICS_PORT'] + '/livez', timeout=4)"]
CMD ["worker"]


FROM runtime AS gateway
COPY --from=gateway-build /opt/mirage /opt/mirage
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['MIRAGE_PORT'] + '/livez', timeout=4)"]
CMD ["gateway"]
