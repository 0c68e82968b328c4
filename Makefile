# Names for what is done often; each is one command that can be typed without make as well.
python := .venv/bin/python
rootfs ?=

.PHONY: all check bench

all:
	./check build

check:
	./check

# All comparisons in one quiet run of some minutes, as root; then the tables and pictures of
# docs/performance.md. `make bench rootfs=TAR` measures with that root file system.
bench:
	./check install
	.venv/user/bin/python -m benchmarks.compare --json benchmarks/saved/compare.json $(if $(rootfs),--rootfs $(rootfs))
	$(python) -m benchmarks.plots benchmarks/saved/compare.json
