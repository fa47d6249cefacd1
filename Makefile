# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors

.DEFAULT_GOAL := help
.NOTPARALLEL:  # targets share one environment

bin := .venv/bin
mermaid := tests/tools/mermaid
setup := @scripts/bootstrap.sh

##@ Use

.PHONY: demo
demo: ## run the shop example
	$(setup) demo
	@$(bin)/python examples/shop/demo.py $(ARGS)

.PHONY: bench
bench: ## measure speed                     (ARGS="…" go to the benchmark)
	$(setup) bench
	@$(bin)/python -m bench $(ARGS)

##@ Work

.PHONY: test
test: mermaid ## run the tests                     (ARGS="-k retry" go to pytest)
	$(setup) test
	@$(bin)/python -m pytest $(ARGS)

.PHONY: torture
torture: ## kill and pause processes a while  (ARGS="--seed 1 --events 100000")
	$(setup) test
	@$(bin)/python -m tidemill torture $(ARGS)

.PHONY: test-pythons
test-pythons: mermaid ## run the tests on every other Python found
	$(setup) test
	@scripts/test-pythons.sh $(ARGS)

.PHONY: check
check: ## formatting, lint, types, changelog
	$(setup) check
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/pyright
	@echo "$(bin)/towncrier build --draft"  # refuses a fragment whose name it cannot read
	@out=$$($(bin)/towncrier build --draft --version next 2>&1) || { echo "$$out"; exit 1; }

.PHONY: format
format: ## write the code the way check wants it
	$(setup) check
	@$(bin)/ruff check --fix-only --quiet .
	@$(bin)/ruff format .

.PHONY: docs
docs: ## write the generated parts of docs/
	$(setup) test
	@$(bin)/python docs/generate.py

##@ Keep

.PHONY: lock
lock: ## pin the dependencies again        (ARGS=--upgrade takes newer ones)
	@scripts/lock.sh $(ARGS)

.PHONY: mermaid
mermaid: ## install the Mermaid parser the tests ask
ifneq ($(shell command -v npm 2>/dev/null),)
mermaid: $(mermaid)/node_modules/.package-lock.json
else ifeq ($(CI),true)
	@echo "npm is missing, and in CI no test is skipped: install Node.js 20 or newer." >&2; exit 1
else
	@echo "!! npm is missing: the Mermaid parser test WILL BE SKIPPED. Install Node.js 20 or newer to run it." >&2
endif

$(mermaid)/node_modules/.package-lock.json: $(mermaid)/package.json $(mermaid)/package-lock.json
	@echo "  · installing $(mermaid)" >&2
	@cd $(mermaid) && npm ci --loglevel=error >/dev/null && touch node_modules/.package-lock.json

.PHONY: clean
clean: ## remove what make made
	@rm -rf .venv .venv-* dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(mermaid)/node_modules
	@find src tests examples bench scripts -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: help
help:
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
