# `make` alone lists what there is: every target that has a `##` line.
# GNU make 3.81 (macOS) and a POSIX shell are enough to read this file.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

GO ?= go
# What `coupond version` says: the nearest tag, else the commit.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
# Passed to the command behind a target: make attack ARGS='-users 50000'
ARGS ?=

# The tools are built from source at these versions into .bin/, once: go.mod stays a list of what the
# service and its tests need, and everybody's linters say the same. The version in the file's name makes a
# new version build again.
GOLANGCI_LINT_VERSION := v2.15.0
ACTIONLINT_VERSION := v1.7.12
GOVULNCHECK_VERSION := v1.9.0
GOLANGCI_LINT := .bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
ACTIONLINT := .bin/actionlint-$(ACTIONLINT_VERSION)
GOVULNCHECK := .bin/govulncheck-$(GOVULNCHECK_VERSION)

# The recipe that builds a tool: $(call tool,package,version).
tool = @echo "building $(notdir $(1)) $(2), once" && mkdir -p .bin && \
	GOBIN="$(CURDIR)/.bin" $(GO) install $(1)@$(2) && mv .bin/$(notdir $(1)) $@

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

##@ Run

.PHONY: run
run: ## Serve on :8080 with a PostgreSQL of its own; Ctrl-C stops both
	@$(GO) build -ldflags '$(LDFLAGS)' -o .bin/coupond ./cmd/coupond
	@exec .bin/coupond dev $(ARGS)

##@ Prove

.PHONY: test
test: ## Run every test under the race detector (unit, database, HTTP, stress)
	$(GO) test -race -count=1 -timeout 20m ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) $(ACTIONLINT) ## Run golangci-lint (with gosec), go vet, shellcheck, yamllint, actionlint
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet ./...
	shellcheck .ci/*
	yamllint --strict .
	$(ACTIONLINT)

##@ Tools

.PHONY: ci
ci: ## Do all that decides whether a change lands, from a clean machine on
	bash .ci/run

$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))
$(ACTIONLINT):
	$(call tool,github.com/rhysd/actionlint/cmd/actionlint,$(ACTIONLINT_VERSION))
$(GOVULNCHECK):
	$(call tool,golang.org/x/vuln/cmd/govulncheck,$(GOVULNCHECK_VERSION))
