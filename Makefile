# `make serve` and `make test` do everything from a bare checkout. They reuse an environment that is already there.
PYTHON ?= python3
FLAVOUR ?= cpu
VENV ?= .venv$(if $(filter-out cpu,$(FLAVOUR)),-$(FLAVOUR))
comma := ,
MODELS ?= $(or $(TOPFIVE_MODELS),googlenet$(comma)squeezenet1_1)
WEIGHTS ?= $(or $(TOPFIVE_WEIGHTS),auto)
PROTOBUF ?= 7.36.2
SOAK_S ?= 600
FUZZ_S ?= 3600
URL ?= http://127.0.0.1:8000
PEERS ?= naive,expert,litserve,bentoml,mosec,ray,mlserver,pytriton
PYTRITON_PYTHON ?= /usr/bin/python3

ARTIFACTS ?= $(or $(TOPFIVE_ARTIFACTS),artifacts)

BIN := $(VENV)/bin
STAMP := $(VENV)/.topfive-$(FLAVOUR)
SERVING := $(VENV)/.serving-$(FLAVOUR)
ENVIRONMENT := $(or $(wildcard $(STAMP)),$(SERVING))
PIP = $(@D)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
# The index that PyTorch for CPUs comes from. Without an answer from there, PyTorch comes from PyPI: with CUDA, 6 GB.
TORCH_INDEX ?= $(if $(filter cpu,$(FLAVOUR)),https://download.pytorch.org/whl/cpu)
# TensorRT itself builds and runs only on a card.
ENGINES := tensorrt-rtx$(if $(filter gpu,$(FLAVOUR)),$(comma)tensorrt)
export TOPFIVE_ARTIFACTS := $(ARTIFACTS)

.PHONY: try serve packaged install export export-missing test test-all test-protobuf test-clients test-kserve test-compose test-kubelet test-ray test-gpu lint format proto bench
.PHONY: soak fuzz api-check audit sbom bench-models bench-peers bench-gpu clean

define new-environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "topfive needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
endef

# Right answers in about a minute: the base install alone, and the trained model that comes with topfive.
try: export TOPFIVE_MODELS = squeezenet1_1
try: .venv-try/.installed
	exec .venv-try/bin/topfive serve

.venv-try/.installed: pyproject.toml constraints.txt
	$(new-environment)
	$(PIP) -e .
	touch $@

# GoogLeNet beside it. The environment has what serving and exporting need on this machine; that of `make test` has more.
serve: export TOPFIVE_MODELS := $(MODELS)
serve: $(ENVIRONMENT)
	@echo "3 of 3: exports those of $(MODELS) that are missing; the weights of googlenet are 50 MB"
	$(BIN)/topfive export $(MODELS) --weights $(WEIGHTS) --missing
	exec $(BIN)/topfive serve

$(SERVING): pyproject.toml constraints.txt
	$(new-environment)
	@echo "1 of 3: installs what serving needs, 0.4 GB"
	$(PIP) -e '.[$(FLAVOUR),simd,heic]'
	@echo "2 of 3: installs PyTorch, which only exports need: 0.7 GB for CPUs, 6 GB with CUDA"
	$(if $(TORCH_INDEX),-$(PIP) --retries 0 --timeout 5 --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e '.[$(FLAVOUR),simd,heic,export$(if $(filter gpu,$(FLAVOUR)),$(comma)$(ENGINES))]'
	touch $@

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(new-environment)
	$(PIP) --quiet -e '.[$(FLAVOUR),simd,heic,export,int8,$(ENGINES),dev]'
	touch $@

export: $(ENVIRONMENT)
	$(BIN)/topfive export $(MODELS) --weights $(WEIGHTS)

export-missing: $(ENVIRONMENT)
	$(BIN)/topfive export $(MODELS) --weights $(WEIGHTS) --missing

# Makes the model that comes with topfive anew; commit what changed.
packaged: install
	$(BIN)/python -m export.packaged

test: install
	$(BIN)/python -m pytest -n 2 -m 'not large'

# The tests with the large networks: about an hour on two cores, 12 GB of memory.
test-all: install
	$(BIN)/python -m pytest -n 1

# Clients of every kind against one service for SOAK_S seconds, and what it holds of them afterwards.
soak: install
	$(BIN)/python -m tests.soak $(SOAK_S)

# Mutated images, forms and artifacts for FUZZ_S seconds. What fails stays in build/fuzz, and belongs into
# tests/fuzz/corpus once it is mended.
fuzz: install
	$(BIN)/python -m tests.fuzz $(FUZZ_S)

# Requests made from the OpenAPI document of the running server at URL: each answer is one that the document names.
api-check: $(VENV)-schemathesis/.installed
	$(VENV)-schemathesis/bin/schemathesis --config-file tests/rest/schemathesis.toml run $(URL)/openapi.json --checks all --max-examples 300

$(VENV)-schemathesis/.installed:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'schemathesis>=4.32,<5'
	touch $@

# On a machine with an NVIDIA card: make test-gpu FLAVOUR=gpu. Elsewhere each test is skipped and says why.
test-gpu: install
	$(BIN)/python -m pytest tests/gpu -s

# Tests the committed code of the gRPC contract with another protobuf runtime, in an environment of its own.
test-protobuf: install
	test -x $(VENV)-protobuf/bin/python || $(PYTHON) -m venv $(VENV)-protobuf
	$(VENV)-protobuf/bin/python -m pip install --quiet --disable-pip-version-check 'protobuf==$(PROTOBUF)' 'grpcio==1.85.1'
	$(VENV)-protobuf/bin/python -W error tests/check_protobuf.py $(PROTOBUF)

# Asks a server with the clients that people use, each in an environment of its own.
test-clients: install $(VENV)-clients/.installed
	$(VENV)-clients/bin/python tests/check_clients.py $(BIN)/topfive tritonclient

test-kserve: install $(VENV)-kserve/.installed
	$(VENV)-kserve/bin/python tests/check_clients.py $(BIN)/topfive kserve

$(VENV)-clients/.installed: PACKAGES := 'tritonclient[grpc,http]==2.73.0'
$(VENV)-kserve/.installed: PACKAGES := 'kserve==0.21.0'

$(VENV)-clients/.installed $(VENV)-kserve/.installed:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	touch $@

# Builds the images and runs the compose file: needs a Docker Engine, and minutes. Where Docker reaches no registry,
# set PYTHON_IMAGE, into which nginx is installed as well; where the build has no network of its own, set
# TOPFIVE_BUILD_NETWORK=host.
test-compose: install
	$(BIN)/python -m tests.compose

# Plays Kubernetes: probes, endpoints and a rolling update of deploy/kubernetes behind haproxy, in a minute.
test-kubelet: install
	$(BIN)/python -m tests.kubelet

# Deploys deploy/ray on a cluster of two nodes on this machine, in an environment of its own: 0.7 GB and 3 minutes.
test-ray: $(VENV)-ray/.installed
	$(VENV)-ray/bin/python -m tests.ray_cluster

$(VENV)-ray/.installed: pyproject.toml constraints.txt
	$(new-environment)
	$(PIP) --quiet -e '.[ray]' httpx
	touch $@

# Looks up the pinned packages in the databases of known vulnerabilities.
audit: $(VENV)-audit/.installed
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

# Lists what is installed, in the format of CycloneDX.
sbom: install $(VENV)-audit/.installed
	mkdir -p build
	$(VENV)-audit/bin/cyclonedx-py environment $(BIN)/python --output-reproducible --output-file build/sbom.json

$(VENV)-audit/.installed:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit cyclonedx-bom
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install
	$(BIN)/python -m proto.generate

bench-models: install
	$(BIN)/topfive export googlenet --weights $(WEIGHTS) --missing --engine openvino

# Measures this server and writes build/benchmarks/report.md; benchmarks/README.md says more.
bench: bench-models
	$(BIN)/python -m benchmarks $(BENCH)

# Measures it beside other servers and writes benchmarks/report.md, which names those that could not be installed.
bench-peers: bench-models
	-$(MAKE) --keep-going $(patsubst %,benchmarks/.envs/%/.installed,$(subst $(comma), ,$(PEERS)))
	$(BIN)/python -m benchmarks --peers $(PEERS) --output benchmarks/report.md $(BENCH)

# PyTriton's stub fits the standard library of Debian 12's Python.
benchmarks/.envs/pytriton/.installed: PYTHON := $(PYTRITON_PYTHON)

benchmarks/.envs/%/.installed: benchmarks/peers/requirements/%.txt benchmarks/peers/requirements/%.lock
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< -c $(word 2,$^)
	touch $@

# On a machine with an NVIDIA card: make bench-gpu FLAVOUR=gpu. It measures TensorRT where an engine was built before:
# topfive export MODEL --engine tensorrt-rtx --target this
bench-gpu: install export-missing
	$(BIN)/python -m benchmarks.gpu $(foreach model,$(subst $(comma), ,$(MODELS)),--model $(model)) $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-protobuf $(VENV)-clients $(VENV)-kserve $(VENV)-audit $(VENV)-schemathesis $(VENV)-ray build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .venv-try
