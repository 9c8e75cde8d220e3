# make quickstart   install, train the embedded default, evaluate
# make tensorboard  curves of the newest runs, on this machine only: RUNS=runs NEWEST=8
# make base         pretrain the embedded base model again: 35 minutes
# make quick        the tests that start no ranks, launchers or hosts
# make test         everything that needs no GPU
# make mutants      whether a test notices one change at a time, where a wrong result is silent
# make fuzz         damaged inputs of every kind: SECONDS=600 SEED=0
# make faults       runs that are killed and starved of disk in every phase: KILLS=200 SEED=0 RANKS="1 2"
# make methods      every method of PEFT, compared with stock; writes docs/methods.md
# make models       every model type with every task, compared with stock; writes docs/models.md
# make lint         format, style, types
# make bench        the loss and the LoRA layer against their peers, on this CPU
# make bench-gpu    the same, the settings and tests/gpu on a GPU; GPU_PYTHON names another Python,
#                   PEERS a folder of packages to compare with
# make gpu          everything that only a GPU shows, in MINUTES=9 (benchmarks/GPU.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := runs/quickstart

GPU_PYTHON ?= $(BIN)/python
SECONDS ?= 600
SEED ?= 0
KILLS ?= 200
RANKS ?= 1 2
RUNS ?= runs
MINUTES ?= 9
NEWEST ?= 8

# make golden       record tests/golden/tokens.json and losses.json anew
.PHONY: quickstart tensorboard base quick test side-by-side alone mutants fuzz faults models methods lint format golden samples bench bench-gpu gpu clean

$(VENV)/.run: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "focaltune needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,trackers]'
	touch $@

quickstart: $(VENV)/.run
	$(BIN)/python launcher/train.py recipes/quickstart.yaml
	$(BIN)/python launcher/evaluate.py $(QUICKSTART) data/samples/test_imbalanced.jsonl.gz
	@echo
	@echo "the report    $(QUICKSTART)/report/index.html; the model is $(QUICKSTART)/model"
	@echo "another file  $(BIN)/python launcher/evaluate.py $(QUICKSTART) data/samples/valid.jsonl.gz"
	@echo "curves        make tensorboard"
	@echo "your own data $(BIN)/python launcher/train.py recipes/quickstart.yaml \\"
	@echo "                  data.path=MY_DATA run.output_dir=runs/mine     (docs/functions.md)"

# Links to the newest runs, so that TensorBoard shows these and calls them by their folders.
tensorboard: $(VENV)/.run
	@shown=$$(mktemp -d); trap 'rm -rf "$$shown"' EXIT; \
	find "$(RUNS)" -type d -name tensorboard -exec ls -td {} + | head -n $(NEWEST) | \
	while read -r curves; do \
		run=$$(dirname "$$curves"); run=$${run#$(RUNS)/}; \
		mkdir -p "$$shown/$$(dirname "$$run")"; ln -s "$$(realpath "$$curves")" "$$shown/$$run"; \
	done; \
	test -n "$$(ls "$$shown")" || { echo "$(RUNS) holds no run with curves"; exit 1; }; \
	$(BIN)/tensorboard --host 127.0.0.1 --logdir "$$shown"

base: $(VENV)/.run
	$(BIN)/python data/samples/base.py corpus runs/base_corpus
	OMP_NUM_THREADS=1 $(BIN)/python launcher/train.py recipes/base.yaml
	$(BIN)/python data/samples/base.py weights runs/base/model/model.safetensors

# Files side by side, in the order of tests/conftest.py, one more than there are cores, as a launch
# waits as long as it computes; beside them, one after the other, those of hosts and GPUs, which
# mostly wait. Only tests/gpu sees GPUs. What they print is shown at the end.
WORKERS = $(shell echo $$(( $$(nproc) < 4 ? $$(nproc) + 1 : 4 )))
SIDE_BY_SIDE = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
ALONE := tests/cluster tests/gpu

quick: $(VENV)/.dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ALONE:%=--ignore=%) -m "not slow"

test: $(VENV)/.dev
	$(MAKE) --no-print-directory --jobs 2 side-by-side alone

side-by-side:
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ALONE:%=--ignore=%)

alone:
	@printed=$$(mktemp); code=0; \
	for folder in $(ALONE); do $(BIN)/python -m pytest $$folder >> $$printed 2>&1 || code=$$?; done; \
	cat $$printed; rm $$printed; exit $$code

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants.py

fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(SECONDS) --seed $(SEED)

faults: $(VENV)/.dev
	$(BIN)/python tests/faults.py --kills $(KILLS) --seed $(SEED) --ranks $(RANKS)

models: $(VENV)/.dev
	$(BIN)/python tests/model_matrix.py --page

methods: $(VENV)/.dev
	$(BIN)/python tests/method_matrix.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The losses that a change of arithmetic is compared with; only a change that is meant records anew.
golden: $(VENV)/.dev
	PYTHONPATH=.:tests $(BIN)/python tests/data/prepared/test_golden_tokens.py
	PYTHONPATH=.:tests $(BIN)/python tests/trainer/planning/test_golden_plans.py
	PYTHONPATH=.:tests $(BIN)/python tests/test_golden.py

samples: $(VENV)/.run
	$(BIN)/python data/samples/generate.py

bench: $(VENV)/.run
	$(BIN)/python benchmarks/loss.py $(PEERS:%=--peers %) --json benchmarks/loss_cpu.json
	$(BIN)/python benchmarks/lora_linear.py --json benchmarks/lora_linear_cpu.json

# Another Python needs the stack, and nothing is installed into it. The tests come last, so that
# they cannot keep the tables.
bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
	$(GPU_PYTHON) benchmarks/loss.py --device cuda $(PEERS:%=--peers %) \
		--json benchmarks/loss_gpu.json
	$(GPU_PYTHON) benchmarks/lora_linear.py --device cuda --json benchmarks/lora_linear_gpu.json
	$(GPU_PYTHON) benchmarks/kernel_settings.py --json benchmarks/kernel_settings_gpu.json
	$(GPU_PYTHON) -m pytest tests/gpu

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
	$(GPU_PYTHON) benchmarks/gpu_campaign.py --minutes $(MINUTES) --out benchmarks/gpu_campaign.json
	$(GPU_PYTHON) benchmarks/gpu_campaign.py --report benchmarks/gpu_campaign.json

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
