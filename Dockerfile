# checkov:skip=CKV_DOCKER_7: the stages that it finds untagged are this file's own; the one base image has a tag
# The server as an image: docker build --tag igd-recommender .                        vLLM on CUDA (the default)
#                         docker build --tag igd-recommender:cpu --build-arg VARIANT=cpu .   embedded engine, no GPU
# docs/how-to/deploy.md says how to run it.

# gpu or cpu.
ARG VARIANT=gpu

FROM docker.io/library/debian:12.15-slim AS base
SHELL ["/bin/bash", "-o", "errexit", "-o", "nounset", "-o", "pipefail", "-c"]
# Debian's versions are not pinned: a pin is gone from the mirrors at the package's next security update, and the build with
# it. The base image fixes the release (12, Python 3.11); what was built is pinned by its digest.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
 && groupadd --system --gid 10001 igd \
 && useradd --system --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin igd \
 && install --directory --owner 10001 --group 10001 /cache /models

# pip stands beside the environment that it fills, so that the environment holds none.
FROM base AS pip
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/igd
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_PYTHON=/opt/igd/bin/python

FROM pip AS packages-cpu
WORKDIR /source
# Where PyTorch's CPU builds lie.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/pip/bin/pip install --no-deps --index-url "$TORCH_INDEX" torch==2.13.0+cpu
COPY deploy/locks/server.txt ./
RUN /opt/pip/bin/pip install --no-deps --requirement server.txt

FROM pip AS packages-gpu
WORKDIR /source
COPY deploy/docker/gpu.txt ./
RUN /opt/pip/bin/pip install --no-deps --require-hashes --requirement gpu.txt

# hadolint ignore=DL3006
FROM packages-${VARIANT} AS packages
WORKDIR /source
COPY deploy/docker/debian.txt ./
# Without what no running program reads: libraries to link with, and the packages' own tests.
RUN /opt/pip/bin/pip install --no-deps --require-hashes --requirement debian.txt \
 && find /opt/igd -name '*.a' -delete \
 && find /opt/igd -type d -name tests -prune -exec rm -rf {} +

# The project apart from its packages: images with other code share their layer, which is nearly all of an image.
FROM packages AS project
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY igd_core igd_core
COPY server server
RUN /opt/pip/bin/pip install --no-deps --no-build-isolation --root /project .

FROM base AS system-cpu

# CUDA's libraries come with the wheels, its driver from the host (NVIDIA Container Toolkit). Triton, which vLLM's kernels are
# written in, compiles its C driver at the first start, into /cache: this variant alone needs a compiler. FlashInfer would
# need nvcc and g++ too; without them vLLM does without it (docs/how-to/deploy.md, "Compilers").
FROM base AS system-gpu
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev libpython3-dev \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
ENV IGD_ENGINE=vllm \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    QUACK_CACHE_DIR=/cache/quack \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor

# hadolint ignore=DL3006
FROM system-${VARIANT} AS final
ARG VARIANT
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="igd-recommender" \
      org.opencontainers.image.description="Recommendation server: a language model decodes catalogue items in a prefix tree" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.base.name="docker.io/library/debian:12.15-slim" \
      io.igd.variant="$VARIANT"
COPY --from=packages /opt/igd /opt/igd
COPY --from=project /project /
# All that is written goes below /cache and /tmp, so the root file system may be read-only.
ENV PATH=/opt/igd/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    IGD_HOME=/cache \
    IGD_HOST=0.0.0.0 \
    IGD_PORT=8000 \
    IGD_OPERATIONS_PORT=9000
USER 10001:10001
WORKDIR /cache
VOLUME ["/cache", "/models"]
EXPOSE 8000 9000
# Alive, not ready: who restarts the unhealthy must not restart a server for waiting for its store.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"IGD_PORT\"]}/healthz', timeout=2)"]
# tini reaps what vLLM's processes may leave; it passes SIGTERM to the server alone, which ends its own children.
ENTRYPOINT ["/usr/bin/tini", "--", "igd"]
CMD ["serve"]
