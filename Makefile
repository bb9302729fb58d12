# Each target makes and reuses .venv by itself.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
OLDEST := $(VENV)-oldest/bin/python -m
DEMO := examples/demo
SPEECH := $(DEMO)/speech.wav

.PHONY: demo serve docs test test-oldest lint pipecat oldest bench bench-kernels bench-pipeline bench-live clean

demo: $(VENV)/.ready ## render the demo avatar to out/demo.mp4
	@mkdir -p out
	$(RUN) engine.render --avatar $(DEMO) --audio $(SPEECH) -o out/demo.mp4

serve: $(VENV)/.ready ## serve the demo avatar, and a page at http://127.0.0.1:8010, until Ctrl-C
	$(RUN) serve

test: $(VENV)/.ready ## everything that runs without a GPU; the GPU tests skip
	@# Triton's interpreter needs a process of its own: it gets the time that the others leave.
	@log=$$(mktemp); \
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 nice -n 19 $(RUN) pytest -n 2 --max-worker-restart 0 \
	    tests/kernels/fused > $$log 2>&1 & interpreter=$$!; \
	trap 'kill $$interpreter 2> /dev/null; rm -f $$log' EXIT; trap 'exit 130' INT TERM; \
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile --max-worker-restart 0; tests=$$?; \
	wait $$interpreter; interpreted=$$?; cat $$log; \
	exit $$((tests ? tests : interpreted))

test-oldest: oldest ## the Triton kernels with the oldest versions that are allowed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(OLDEST) pytest -q -n 2 tests/kernels/fused
	OMP_NUM_THREADS=1 $(OLDEST) pytest -q -n 2 tests/kernels/generator
	OMP_NUM_THREADS=1 $(OLDEST) kernels.compile --arch 90 --part stages

lint: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: $(VENV)/.ready ## write docs/api.md from the docstrings
	$(VENV)/bin/python docs/api.py

bench: $(VENV)/.ready ## frames a second on this machine, next to a frame-by-frame loop
	$(RUN) benchmarks.render

bench-kernels: $(VENV)/.ready ## every stage next to its alternatives, on the GPU if there is one
	$(RUN) benchmarks.kernels

bench-pipeline: $(VENV)/.ready ## speech to finished frames next to the CPU and the split design
	$(RUN) benchmarks.pipeline

bench-live: $(VENV)/.ready ## live sessions in real time, their scheduler, an hour of one
	$(RUN) benchmarks.live

pipecat: $(VENV)-pipecat/.ready ## an environment with Pipecat, for the tests of integrations/pipecat

$(VENV)-pipecat/.ready: integrations/pipecat/pyproject.toml
	$(PYTHON) -m venv $(VENV)-pipecat
	$(VENV)-pipecat/bin/python -m pip install --quiet --disable-pip-version-check -e integrations/pipecat
	@touch $@

oldest: $(VENV)-oldest/.ready ## an environment with the oldest PyTorch and Triton, above .venv

# Everything else comes from .venv, NVIDIA's libraries for a newer PyTorch among it: it imports with
# them, and no GPU is used.
$(VENV)-oldest/.ready: $(VENV)/.ready
	@rm -rf $(VENV)-oldest # not --clear, which would empty what a link leads to
	$(RUN) venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4'
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$(echo $(VENV)-oldest/lib/python*/site-packages)/venv.pth
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-pipecat $(VENV)-oldest out build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -f $(DEMO)/*.plan $(DEMO)/generator.json $(DEMO)/audio_encoder.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
