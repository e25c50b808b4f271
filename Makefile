# Two commands from a bare clone: `make demo` writes demo.mp4, `make test` runs the checks.
# Both make their own virtual environment in .venv.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
SENTENCE ?= Hello! A seed drew me, and I learned to speak on a laptop. What shall we talk about today?

.PHONY: demo test lint types clean

demo: $(VENV)/.base
	$(VENV)/bin/streamchar say "$(SENTENCE)" -o demo.mp4 --character 7 --prompt "a happy person waves" --captions demo.vtt

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -q

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .

types: $(VENV)/.dev
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The CPU build of torch where pip can find one (hundreds of MB less), else the default build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV) || \
		{ echo "error: Python needs its venv module: install python3-venv (Debian, Ubuntu)" >&2; exit 1; }
	$(PIP) install --quiet "$(TORCH)+cpu" 2>/dev/null || $(PIP) install --quiet "$(TORCH)"
	touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	touch $@
