# One command each. Needs Python >= 3.11, make and git; everything else goes into .venv.

PYTHON ?= python3
IMAGE  ?=
ARGS   ?=
EXAMPLES ?= 640

VENV      := .venv
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test check fuzz fuzz-api format proto train bench soak clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv with everything (the other commands do it by themselves)

demo: $(INSTALLED)  ## walk away and back, with and without memory: out/demo/ (IMAGE=photo.jpg for your own)
	@$(BIN)/mirage demo $(if $(IMAGE),--image "$(IMAGE)") $(ARGS)

up: $(INSTALLED)  ## server, worker and viewer at http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/mirage up $(ARGS)

test: $(INSTALLED)  ## the test suite
	$(BIN)/pytest -q $(ARGS)

check: $(INSTALLED)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/published.binpb

fuzz: $(INSTALLED)  ## a million damaged inputs for the parsers (Linux; ARGS="--inputs 20000" for fewer)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/service/fuzz/run.py $(ARGS)

fuzz-api: $(INSTALLED)  ## 20,000 requests drawn from the API's own description (EXAMPLES per endpoint)
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q -rA tests/service/api $(ARGS)

format: $(INSTALLED)  ## rewrite the code the way `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED)  ## generate service/wire from proto/ (the path mapping gives correct imports)
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iservice/wire=proto/mirage/v1 \
		--python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. service/wire/world.proto

train: $(INSTALLED)  ## train the mini model from scratch, or resume (about eight hours of two CPU cores)
	$(BIN)/python -m worker.train $(ARGS)

bench: $(INSTALLED)  ## frames per second by stage on this machine
	$(BIN)/python -m bench.step --json out/step.json $(ARGS)

soak: $(INSTALLED)  ## processes killed, stopped, drained; 10,000 sessions: out/survive.json (10-20 minutes)
	$(BIN)/python -m bench.survive --full --json out/survive.json $(ARGS)

clean:  ## remove .venv, caches and out/
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
	find service worker tests bench -name __pycache__ -type d -exec rm -rf {} +

# torch goes first, so that nothing else chooses another one. The stamp makes later runs free.
$(INSTALLED): pyproject.toml deploy/constraints.txt
	@echo "Installing 3 GB (with torch for CUDA more) into $(VENV), once: about four minutes on a fast line."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed; '$(PYTHON)' is `$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 3: torch, the largest part ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt torch
	@echo "2 of 3: everything else, Triton and SciPy among it ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[worker,eval,inspect,dev]'
	@echo "3 of 3: compiling kernels (20 seconds) ..."
	@$(BIN)/python -c 'from worker.warm import warm_up; warm_up()'
	@touch $@
