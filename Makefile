# make demo: draw digits.  make test: all checks.  make lab: open the notebooks.  make book: pages to read, _docs/index.html.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo play kernels test lab readme book digits classifier box colour clean

demo: .venv/.installed          ## draw 16 digits with the model in the box
	$(BIN)/distsmooth demo --out out --n 16

play: .venv/.installed          ## write the playground as one file, out/play.html
	$(BIN)/distsmooth play --out out

kernels: .venv/.installed       ## compile the page's kernel anew, with the compiler that npm fetches
	$(BIN)/python -c 'from distsmooth.engine.page import build_kernels; build_kernels()'

test: .venv/.dev                ## everything that must hold
	$(BIN)/python scripts/check.py

lab: .venv/.lab                 ## open the notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

readme: .venv/.dev              ## write README.md from the index
	$(BIN)/python scripts/readme.py

book: .venv/.dev                ## pages from the notebooks, to open from the disk: _docs/index.html
	$(BIN)/python scripts/book

digits: .venv/.installed        ## pack the bundled digits anew, from MNIST in DISTSMOOTH_DATA
	$(BIN)/python scripts/pack_digits.py

classifier: .venv/.installed    ## train the classifier of digits anew, on MNIST in DISTSMOOTH_DATA: seven minutes on one core
	$(BIN)/python scripts/train_classifier.py

# the recipes $(1)-*, trained on as far as they have come, and packed as the bundled model $(2), with options $(3)
define trained
for part in smooth reverse raw; do \
  $(BIN)/distsmooth train --recipe $(1)-$$part --out runs/$(1)-$$part $$(test -d runs/$(1)-$$part/checkpoints && echo --resume) || exit 1; done
$(BIN)/distsmooth pack --parts runs/$(1)-smooth runs/$(1)-reverse runs/$(1)-raw --out distsmooth/pretrained/$(2) $(3)
endef

box: .venv/.installed           ## train the bundled model anew, on MNIST in DISTSMOOTH_DATA: some hours on one core; goes on where it stood
	$(call trained,box,digits)
	$(BIN)/python scripts/card_digits.py

colour: .venv/.installed        ## train the bundled model of colour anew, on CIFAR-10 in DISTSMOOTH_DATA: some hours on one core; goes on where it stood
	$(call trained,cifar10-16,cifar10-16,--sigma 0.3 --half --note "$$(cat scripts/note_colour.txt)")

# one virtual environment; what is installed is remembered, so that a second call is quick
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distsmooth needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.lab: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[lab]'
	touch $@

.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv out _book _docs build *.egg-info
