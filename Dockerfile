# One image that shards, trains, searches and serves, with GPUs (CUDA's libraries are in it) or without:
#
#   docker build -t bintally .
#   docker build -t bintally --build-arg USER=root .    # for SageMaker, which expects root
#
# `docker run bintally serve --checkpoint …` is a server, `bintally fit …` a training.
FROM python:3.11-slim-bookworm

# libgomp1 is OpenMP, for PyTorch's CPU kernels. wget is for the health check, KubeRay's probes too.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 bintally

# The versions that the tests ran with, gigabytes of them, in a layer that new code leaves alone. Into
# the system's Python, for KubeRay's login shell forgets a PATH that was set here.
WORKDIR /opt/bintally
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && pip install --no-cache-dir -c constraints.txt -r requirements.txt

# .dockerignore lets through what the project is made of, and nothing else.
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# SageMaker's commands, `train` and `serve`; Ray has a `serve` of its own.
ENV PATH=/opt/bintally/docs/launch/container:$PATH PYTHONUNBUFFERED=1

ARG USER=bintally
USER ${USER}
WORKDIR /home/bintally
EXPOSE 8080
# Docker's and compose's, for a server; Kubernetes and SageMaker ask by themselves.
HEALTHCHECK --start-period=60s --timeout=3s \
  CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/ping"]
# SIGTERM drains a server within SageMaker's 30 s, and Kubernetes'. There: readinessProbe GET /ping,
# livenessProbe tcpSocket 8080, a token in BINTALLY_TOKEN from a secret.
CMD ["serve"]
