# Build and serve engines on a GPU machine: Triton's TensorRT-LLM image, this package, and nothing more.
#
#   docker build -t engine-to-capacity .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/workspace" engine-to-capacity \
#       build-engine --precision fp8 --checkpoint DeepSeek-R1-0528-Qwen3-8B
#   docker run --rm --gpus all --ipc=host -v "$PWD:/workspace" -p 127.0.0.1:8000-8002:8000-8002 engine-to-capacity \
#       serve-repo artifacts/repositories/NAME --address 0.0.0.0
#
# The tag decides the TensorRT-LLM version (26.06 holds 1.2.1), and an engine runs only under the version that built it.
ARG TRITON_TAG=26.06-trtllm-python-py3

FROM python:3.12-slim AS wheel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY engines engines
COPY triton_repo triton_repo
COPY loadtest loadtest
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}
COPY --from=wheel /wheels /tmp/wheels
# The image's own packages come first: what it already has is never replaced.
RUN pip install --no-cache-dir --upgrade-strategy only-if-needed "$(echo /tmp/wheels/*.whl)[front]" \
    && rm -r /tmp/wheels \
    && useradd --create-home --uid 10001 engineer
USER 10001
WORKDIR /workspace
EXPOSE 8000 8001 8002 9000
# Ready means that every model answers. A container that only builds has no server: turn the check off there.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=4 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["build-engine", "--help"]
