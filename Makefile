# What a person types; each target is one command that also runs by hand.
#
#   make bench [ROOTFS=tar] [JSON=file] [GROUPS="start cli"]    beside every installed peer: docs/performance.md
#   make figures JSON=file                                      tables and plots of docs/performance.md from it

JSON ?= benchmarks/saved/last.json
python := .venv/user/bin/python

.PHONY: check quick ci bench figures
check:
	./check

quick:
	./check --quick

ci:
	.ci/run

bench:
	./check install
	$(python) -m benchmarks $(if $(ROOTFS),--rootfs $(ROOTFS)) --json $(JSON) $(GROUPS)

figures:
	.venv/bin/python -m benchmarks.plots $(JSON) --to docs/plots --into docs/performance.md
