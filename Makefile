# Every target sets up what it needs: `make demo` works on a fresh checkout. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Which PyTorch build the first setup installs: empty is what PyPI gives, `cpu` is the small CPU-only one.
TORCH ?=
# Processes that run the tests.
JOBS ?= 2
CONFIG ?= configs/voc07_default.yaml
VOC_ROOT ?= data/VOCdevkit
# Added to the command that a target runs, e.g. `make demo ARGS="run.seed=1"` or `make test ARGS="-k boxes"`.
ARGS ?=

python := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo train-voc data-voc test test-all test-interop lint types rooms docs table-voc compare bench reliability clean-cache clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1 - /p' $(firstword $(MAKEFILE_LIST)) | awk -F ' - ' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) CONFIG=$(CONFIG) VOC_ROOT=$(VOC_ROOT) ARGS=$(ARGS)"

setup: $(VENV)/.installed  ## make the virtual environment and install everything into it
	@:

# The stamp is touched last, so a failed installation leaves none and the next call tries again.
# Each OpenCV wheel brings its own `cv2` folder: with two of them installed, selective search is there by luck.
$(VENV)/.installed: pyproject.toml constraints.txt
	@[ -f $(VENV)/pyvenv.cfg ] && $(python) -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	        echo "error: '$(PYTHON)' is not Python 3.10 or newer: name one that is, as in make setup PYTHON=python3.12" >&2; \
	        exit 1; }; \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "error: '$(PYTHON)' has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
	        exit 1; }; \
	    $(PYTHON) -m venv $(VENV); }
	@other=$$($(python) -m pip list --format=freeze --disable-pip-version-check \
	        | sed -n -E 's/^(opencv-(python|python-headless|contrib-python-headless))==.*/\1/p' | xargs); \
	[ -z "$$other" ] || { \
	    echo "error: $(VENV) holds $$other, which clashes with opencv-contrib-python:" \
	        "run $(python) -m pip uninstall -y $$other opencv-contrib-python, then make setup" >&2; \
	    exit 1; }
	@echo "Installing sppdet and what it needs into $(VENV) (once; a few minutes where nothing is cached)"
	@$(python) -m pip install --quiet --disable-pip-version-check 'uv>=0.7'
	@$(python) -m uv pip install --python $(python) $(if $(TORCH),--torch-backend $(TORCH)) \
	    -c constraints.txt -e '.[test]'
	@touch $@

demo: setup  ## train on drawn shapes, evaluate and detect: minutes on a CPU, no data or weights downloaded
	$(python) -m sppdet.train configs/demo.yaml $(ARGS)
	$(python) -m sppdet.detect --model runs/demo --output runs/demo/pictures cache/shapes/JPEGImages/test_0000?.jpg

# Only the default place is ever downloaded to: a VOC_ROOT that you name and that is not there is an error of the
# training command. `.incomplete` is what an interrupted download leaves (scripts/get_voc.py).
ifeq ($(VOC_ROOT),data/VOCdevkit)
voc_lists := $(wildcard $(foreach folder,data/VOCdevkit data/VOCdevkit/VOC*,$(folder)/ImageSets/Main/*.txt))
voc_there := $(if $(wildcard data/VOCdevkit/.incomplete),,$(voc_lists))
train-voc: $(if $(voc_there),,data-voc)
endif
train-voc: setup  ## train and evaluate CONFIG on PASCAL VOC2007 in VOC_ROOT
	$(python) -m sppdet.train $(CONFIG) data.root=$(VOC_ROOT) $(ARGS)

data-voc: setup  ## download PASCAL VOC2007 (0.9 GB) into data/ and check it
	$(python) scripts/get_voc.py --root data

test: lint types rooms setup  ## everything that CI checks: style, types, the order of the rooms, and the tests
	$(python) -m pytest -n $(JOBS) $(ARGS)

test-all: setup  ## the tests, the slow ones too
	$(python) -m pytest -n $(JOBS) -m "slow or not slow" $(ARGS)

# uv leaves out the OpenCV packages that three of these want (tool.uv in pyproject.toml).
test-interop: setup  ## the tests of other tools against their packages, which it installs
	$(python) -m uv pip install --quiet --python $(python) -c constraints.txt -e '.[test,interop]' \
	    sahi tidecv label-studio-sdk mlflow-skinny dvc
	$(python) -m pytest -n $(JOBS) -rs $(ARGS) tests/data/test_prelabels.py tests/detection/test_interchange.py \
	    tests/evaluation/test_diagnosis.py tests/evaluation/test_export.py tests/evaluation/test_flat_metrics.py \
	    tests/scripts/test_integrations.py tests/utils/test_curves.py

lint: setup  ## check style and formatting
	$(python) -m ruff check
	$(python) -m ruff format --check

types: setup  ## check the annotations
	$(python) -m mypy

rooms: setup  ## check that imports only go down between the rooms of the package
	$(VENV)/bin/lint-imports

docs: setup  ## build the documents as a site in site/
	$(python) -m uv pip install --quiet --python $(python) -c constraints.txt -e '.[docs]'
	$(python) -m mkdocs build --strict

table-voc: setup  ## train and measure the rows of the paper's table, and write docs/experiments/accuracy.md; most of a day
	$(python) scripts/compare.py ablation --voc-root $(VOC_ROOT) --write docs/experiments/accuracy.md $(ARGS)

compare: setup  ## train and measure every system on the same images, and write docs/experiments/systems.md; about two hours
	$(python) scripts/compare.py systems --voc-root $(VOC_ROOT) --write docs/experiments/systems.md $(ARGS)

bench: setup  ## measure every stage beside what it replaces, and write docs/experiments/performance.md; half an hour
	$(python) scripts/bench.py all --voc-root $(VOC_ROOT) --write docs/experiments/performance.md $(ARGS)

reliability: setup  ## kill, interrupt, damage and fuzz it, and write docs/reliability.md; hours
	$(python) scripts/reliability.py --write docs/reliability.md --json docs/reliability.json \
	    $(if $(wildcard $(VOC_ROOT)),--voc-root $(VOC_ROOT)) $(ARGS)

clean-cache:  ## remove cached proposals, conv maps and drawn images (cache/)
	rm -rf cache

clean:  ## remove what builds and tests leave (keeps the environment, cache/, runs/ and data/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find sppdet tests scripts -name __pycache__ -prune -exec rm -rf {} +
