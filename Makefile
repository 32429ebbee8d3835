# `make demo` and `make test` set up .venv themselves, with plain pip. A second run is quick.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
PACKAGES := kernels core domains apps

BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The demo's budget a domain. SHORT=1 shows that every verb works, and trains next to nothing.
ifdef SHORT
TRAIN_TIME := 10s
else
TRAIN_TIME := 60s
endif

# The longest demo first: make -j runs them side by side.
DOMAINS := molecules speech timeseries recommendation robotics

.PHONY: help setup demo test lint types format tables lock clean demo-afresh $(addprefix demo-,$(DOMAINS))

help:
	@echo "make demo     train, evaluate and draw on embedded data; prints where the report is (SHORT=1: quicker)"
	@echo "make test     run the tests"
	@echo "make lint     ruff, mypy and the import contracts"
	@echo "make types    mypy alone"
	@echo "make format   let ruff format the code"
	@echo "make tables   render the README's tables from benchmarks/results"
	@echo "make lock     resolve requirements.lock anew"
	@echo "make clean    remove .venv, caches and what was built"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(addprefix demo-,$(DOMAINS))
	@echo "reports: $(foreach one,$(DOMAINS),$(abspath $(DEMO))/$(one)/report.html)"

demo-afresh:
	rm -rf $(DEMO)

demo-timeseries: $(READY) demo-afresh
	$(BIN)/mambakit timeseries train --data co2 --horizon 24 --max-time $(TRAIN_TIME) --output $(DEMO)/timeseries
	$(BIN)/mambakit timeseries evaluate --data co2 --model $(DEMO)/timeseries
	$(BIN)/mambakit timeseries forecast --input co2 --model $(DEMO)/timeseries \
		--output $(DEMO)/forecast.csv --plot $(DEMO)/forecast.png

demo-recommendation: $(READY) demo-afresh
	$(BIN)/mambakit recommendation train --data simulated-shop --model.d_model 64 --model.n_layers 2 \
		--max-time $(TRAIN_TIME) --output $(DEMO)/recommendation
	$(BIN)/mambakit recommendation recommend --model $(DEMO)/recommendation --input simulated-shop \
		--output $(DEMO)/top.parquet
	$(BIN)/mambakit recommendation update --model $(DEMO)/recommendation --store $(DEMO)/states.db \
		--user ada --item i007 --time 2026-11-22T10:00:00Z

demo-molecules: $(READY) demo-afresh
	$(BIN)/mambakit molecules pretrain --data nci --model.d_model 64 --model.n_layers 2 --samples 100 \
		--max-time $(TRAIN_TIME) --output $(DEMO)/molecules
	$(BIN)/mambakit molecules generate --model $(DEMO)/molecules --n 100 --output $(DEMO)/new.smi \
		--grid $(DEMO)/new.png

demo-speech: $(READY) demo-afresh
	$(BIN)/mambakit speech train --data spoken-digits --task classify --max-time $(TRAIN_TIME) --output $(DEMO)/speech
	$(BIN)/mambakit speech evaluate --model $(DEMO)/speech

demo-robotics: $(READY) demo-afresh
	$(BIN)/mambakit robotics train --data reacher-noisy --policy decision-mamba --max-time $(TRAIN_TIME) \
		--output $(DEMO)/robotics
	$(BIN)/mambakit robotics evaluate --model $(DEMO)/robotics --episodes 16 --plot $(DEMO)/returns.png

# a file goes to one worker, so that what its tests share is made once
test: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) types

# mypy cannot follow an editable install's mapped packages: it reads the installed wheel in .ci/run, and here
# a copy laid out as the wheel is.
types: $(READY)
	rm -rf build/typed && mkdir -p build/typed/mambakit
	cp -r $(PACKAGES) build/typed/mambakit/
	cd build/typed && MYPYPATH=. $(abspath $(BIN))/mypy --cache-dir $(CURDIR)/.mypy_cache --config-file $(CURDIR)/pyproject.toml \
		$(addprefix -p mambakit.,$(PACKAGES))

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(READY)
	$(BIN)/python -P benchmarks/tables.py

# One lock for torch's CPU build and its CUDA build: no local version, and no pins of the CUDA libraries, which
# the CUDA build asks for itself.
lock: $(READY)
	$(BIN)/pip-compile --quiet --extra dev --extra timeseries --strip-extras --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint requirements.in --output-file requirements.lock pyproject.toml
	sed -i.old -E -e 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' \
		-e '/^(mambakit|nvidia-|cuda-)/d' -e '/^(#|$$)/d' requirements.lock
	{ echo "# Made by 'make lock' from pyproject.toml and requirements.in."; cat requirements.lock; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -f requirements.lock.old

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis $(DEMO)
