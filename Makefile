# Everything happens in .venv, which these targets make by themselves. Needs Python 3.11 or newer, make and pip.
#
#   make compare    the main job: every backend, solver and gradient method on real data, to results/compare/
#   make test       ruff, basedpyright and pytest, as CI runs them
#   make test-architectures   every gradient method on 55 networks of timm, torchvision, transformers and diffusers
#
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS="..." adds options of pip, ARGS="..." those of the command.

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
BIN := .venv/bin
# one thread a worker: two workers share two cores. The tests of a file run in one of them (--dist loadfile): what
# they have in common, such as a compiled program, is made once
SINGLE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help compare test test-slow test-oldest test-architectures lint docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("odenet needs Python 3.11 or newer, and $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt 'pip>=25.1'
	@touch $@

.venv/.run: .venv/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[all]'
	@touch $@

.venv/.test: .venv/.run tests/foreign/pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --group test --group lint
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps -e tests/foreign
	@touch $@

# an environment of its own, for the same reason as that of the architectures: a notebook takes a ViT of timm, and so torchvision
.venv-docs/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	grep -v '^torch==' constraints.txt > .venv-docs/constraints.txt
	.venv-docs/bin/python -m pip install --quiet $(PIP_ARGS) -c .venv-docs/constraints.txt 'pip>=25.1'
	.venv-docs/bin/python -m pip install --quiet $(PIP_ARGS) -c .venv-docs/constraints.txt -e '.[all]' --group docs
	@touch $@

compare: .venv/.run
	$(BIN)/odenet compare $(ARGS)

# the type checker, one process of 45 s, runs beside the tests and says what it found after them
test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/basedpyright > .venv/basedpyright.log 2>&1 & types=$$!; \
		echo '$(SINGLE) $(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(ARGS)'; \
		$(SINGLE) $(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(ARGS); tests=$$?; \
		wait $$types; types=$$?; echo $(BIN)/basedpyright; cat .venv/basedpyright.log; exit $$((tests ? tests : types))

test-slow: .venv/.test
	$(BIN)/pytest -m slow $(ARGS)

# the oldest versions that pyproject.toml allows, in an environment of their own; PIP_ARGS can name an index of CPU builds
.venv-oldest/.made: pyproject.toml constraints-oldest.txt tests/foreign/pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(PIP_ARGS) 'pip>=25.1'
	.venv-oldest/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints-oldest.txt -e '.[all]' --group test
	.venv-oldest/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -e tests/foreign
	@touch $@

test-oldest: .venv-oldest/.made
	$(SINGLE) .venv-oldest/bin/pytest -n 2 --dist loadfile -m "not slow" tests/native_torch tests/native_jax tests/conformance $(ARGS)

# an environment of its own: torchvision fits one build of torch, which need not be the one that the constraints name
.venv-architectures/.made: pyproject.toml
	$(PYTHON) -m venv .venv-architectures
	.venv-architectures/bin/python -m pip install --quiet $(PIP_ARGS) 'pip>=25.1'
	.venv-architectures/bin/python -m pip install --quiet $(PIP_ARGS) -e '.[torch,jax]' --group test --group architectures
	@touch $@

test-architectures: .venv-architectures/.made
	.venv-architectures/bin/python -m pytest -q tests/architectures/wrappers.py
	.venv-architectures/bin/python -m pytest -q -m slow tests/native_torch/test_export.py
	.venv-architectures/bin/python -m pytest -q tests/native_jax/test_convert_flax.py
	.venv-architectures/bin/python tests/architectures $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

docs: .venv-docs/.made
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" JUPYTER_PLATFORM_DIRS=1 $(SINGLE) NO_MKDOCS_2_WARNING=1 \
		.venv-docs/bin/mkdocs build --strict

bench: .venv/.test
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-docs .venv-architectures .venv-oldest .pytest_cache .ruff_cache .hypothesis site
