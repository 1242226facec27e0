# The verbs of this project. `make run` and `make test` set up everything that they need, in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

unexport PYTHONDONTWRITEBYTECODE  # each of the tests' hundreds of processes would compile our modules anew

.PHONY: run serve test test-e2e check bench lock clean

run: $(READY)  ## the main job on this machine, without an account: results in demo/
	$(BIN)/eopatch-flow demo

serve: $(READY)  ## localhub and an S3 server, for runs from Prefect's UI or from Python
	$(BIN)/eopatch-flow localhub

test: $(READY)  ## all tests, three files at a time
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-e2e: $(READY)  ## through Prefect's UI in Chromium, over PostgreSQL: apt installs what is absent; pictures in test-output/
	command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ apt-get update -q && apt-get install -y -q chromium postgresql; }
	$(BIN)/pytest -m e2e -p no:cacheprovider tests/flows/e2e

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## benchmarks, side by side with their peers; needs Node.js besides
	$(BIN)/python benchmarks/evalscript.py
	$(BIN)/python benchmarks/node.py
	$(BIN)/python benchmarks/rasters.py
	$(BIN)/python benchmarks/reference.py
	$(BIN)/python benchmarks/conversion.py --layouts 256PIXEL 1024BAND --tiles 2

lock:  ## exact versions of everything, for all supported Pythons
	uv pip compile -q --universal --python-version 3.11 --all-extras pyproject.toml -o requirements.lock \
		--custom-compile-command "make lock"
	uv pip compile -q --universal --python-version 3.11 tests/localhub/clients/eogrow.in \
		-o tests/localhub/clients/eogrow.lock --custom-compile-command "make lock"

clean:  ## the results of `make run`
	rm -rf demo

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	touch $(READY)
