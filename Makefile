# Names for what is done often; each is one command that can be typed without make as well.
python := .venv/bin/python
rootfs ?=
groups ?=
run := benchmarks/saved/run.json

.PHONY: all check ci bench figures

all:
	./check build

check:
	./check

ci:
	.ci/run

# All comparisons in one quiet run, as root; then the tables and drawings of docs/performance.md.
# `make bench rootfs=TAR` measures with that root file system; `groups="start cli"` runs only these.
bench:
	./check install
	.venv/user/bin/python -m benchmarks --json $(run) $(if $(rootfs),--rootfs $(rootfs)) $(groups)
	$(MAKE) figures

# The same tables and drawings from the run that is saved.
figures:
	$(python) -m benchmarks.plots $(run) --to docs/plots --into docs/performance.md
