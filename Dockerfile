# The service in a container; docs/service.md says how it is built and run.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY arkfast arkfast
RUN python -m venv /opt/arkfast
# An index of PyTorch's builds without CUDA makes an image for processors smaller by some gigabytes; pip reads the variable.
ARG PIP_EXTRA_INDEX_URL
RUN /opt/arkfast/bin/pip install --no-cache-dir -c constraints.txt '.[asr,serve,containers]'

FROM python:3.12-slim
# On a GPU, Triton and torch.compile build what calls their kernels when they first run.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 arkfast && mkdir /cache /spool && chown arkfast /cache /spool
COPY --from=build /opt/arkfast /opt/arkfast
ENV PATH=/opt/arkfast/bin:$PATH HF_HOME=/cache PYTHONUNBUFFERED=1
USER arkfast
WORKDIR /home/arkfast
EXPOSE 8025
# Loading a model can take minutes; the engine decodes a second of silence for every answer.
HEALTHCHECK --interval=30s --timeout=15s --start-period=10m --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8025/ready', timeout=14)"]
STOPSIGNAL SIGTERM
# A container is reached from outside, so keys are needed: the variable ARKFAST_API_KEYS, or --api_keys with a file that is mounted.
ENTRYPOINT ["arkfast", "serve", "--host", "0.0.0.0", "--port", "8025", "--spool", "/spool"]
CMD ["AutoArk-AI/ARK-ASR-0.6B"]
