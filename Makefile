# Two commands: `make demo` and `make test`. Both create .venv when it is missing and install again
# when setup.py or constraints.txt changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

CLUSTER_PACKAGES := slurm-wlm munge pdsh openssh-server openssh-client iproute2

.PHONY: help install demo bench-quick lint format test test-cluster clean

help:
	@echo "make demo     the whole method on text of this installation, 2 ranks, about 5 minutes"
	@echo "make bench-quick  three mixture methods against uniform weights, on the same text"
	@echo "make test     linters, types and all tests"
	@echo "make test-cluster  launchers on real hosts in network namespaces and a real Slurm; root, apt"
	@echo "make lint     linters and types only"
	@echo "make format   rewrite the code in the project's format"
	@echo "make install  create .venv with AutoScale and its test tools"
	@echo "make clean    remove .venv and caches; outputs/ stays"

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "AutoScale needs Python 3.11 or later, found $$($(PYTHON) --version) at $(PYTHON);" \
	    "name another one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python data_prep/installation_text.py --output .cache/demo/text
	launch/local.sh launch/experiments/demo.toml 2

# Three mixture methods against uniform weights, on the same text; the runs of `make demo` are reused.
bench-quick: $(INSTALLED)
	$(VENV)/bin/python data_prep/installation_text.py --output .cache/demo/text
	$(VENV)/bin/autoscale prepare launch/experiments/demo.toml
	launch/local.sh launch/experiments/demo.toml 2 bench

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

format: $(INSTALLED)
	ruff check --fix .
	ruff format .

test: lint
	python -m pytest

# Debian's packages are installed when one of their programs is missing.
test-cluster: $(INSTALLED)
	@for program in slurmctld slurmd sbatch munged pdsh sshd ssh ip; do \
	    PATH="$$PATH:/usr/sbin:/sbin" command -v $$program > /dev/null || missing=1; \
	done; \
	if [ -n "$$missing" ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends $(CLUSTER_PACKAGES); \
	fi
	python -m pytest -m cluster tests/cluster

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build autoscale.egg-info
