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

box: .venv/.installed           ## train the bundled model anew, on MNIST in DISTSMOOTH_DATA: some hours on one core; goes on where it stood
	for part in smooth reverse raw; do \
	  $(BIN)/distsmooth train --recipe box-$$part --out runs/box-$$part $$(test -d runs/box-$$part/checkpoints && echo --resume) || exit 1; done
	$(BIN)/distsmooth pack --parts runs/box-smooth runs/box-reverse runs/box-raw --out distsmooth/pretrained/digits
	$(BIN)/python scripts/card_digits.py

colour: .venv/.installed        ## train the bundled model of colour anew, on CIFAR-10 in DISTSMOOTH_DATA: some hours on one core; goes on where it stood
	for part in smooth reverse raw; do \
	  $(BIN)/distsmooth train --recipe cifar10-16-$$part --out runs/cifar10-16-$$part $$(test -d runs/cifar10-16-$$part/checkpoints && echo --resume) || exit 1; done
	$(BIN)/distsmooth pack --parts runs/cifar10-16-smooth runs/cifar10-16-reverse runs/cifar10-16-raw --half --out distsmooth/pretrained/cifar10-16 --note "$$(cat scripts/note_colour.txt)"

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
