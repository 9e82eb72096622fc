# `make demo` and `make test` need nothing but Python 3.11+ and pip; everything goes into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
GENERATED := protos/*_pb2.py protos/*_pb2.pyi protos/*_pb2_grpc.py

.PHONY: demo test check protos install clean interop fuzz peers

demo: $(VENV)/.demo
	$(BIN)/concord demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) protos
	git diff --exit-code -- protos

protos: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

install: $(VENV)/.demo

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

interop: $(VENV)/.dev
	tests/interop/run

fuzz: $(VENV)/.dev
	$(VENV)/bin/python -m venv --system-site-packages .fuzz
	.fuzz/bin/pip install --quiet --disable-pip-version-check atheris 'cryptography>=48,<51' pydantic pynacl rfc8785 pytest hypothesis
	.fuzz/bin/python -m tests.fuzz.run $(or $(RUNS),1000000)

# What benchmarks/transfer.py measures beside Concord, each in an environment of its own.
peers:
	$(PYTHON) -m venv .work/flower && .work/flower/bin/pip install --quiet --disable-pip-version-check 'flwr==1.41.0'
	$(PYTHON) -m venv .work/nvflare && .work/nvflare/bin/pip install --quiet --disable-pip-version-check nvflare
