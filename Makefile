# `make` lists the targets. Needs GNU make 3.81 (macOS) or newer and a POSIX shell.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

GO ?= go
# Passed to the program behind a target: make psql ARGS='-c "table coupons"'
ARGS ?=
# The race detector needs a C compiler: make test RACE= does without.
RACE ?= -race
# Most tests wait for PostgreSQL most of the time, so more of them run than there are cores.
PARALLEL ?= 8
# The race detector sleeps for a second when a process ends, and the tests start hundreds.
export GORACE ?= atexit_sleep_ms=0
# What `coupond version` prints in a release and in the image, where Go cannot ask git.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

# Tools are built from source into .bin/ at these versions, so that go.mod lists only what the
# service and its tests need. The version is part of the file name: a new version is built again.
GOLANGCI_LINT := .bin/golangci-lint-v2.15.0
ACTIONLINT := .bin/actionlint-v1.7.12
CYCLONEDX := .bin/cyclonedx-gomod-v1.10.0
# The recipe that builds a tool: $(call tool,package).
tool = @echo "building $(@F), once" && mkdir -p .bin && GOBIN='$(CURDIR)/.bin' $(GO) install $(1)@$(lastword $(subst -v, v,$@)) && \
	mv .bin/$(notdir $(1)) $@

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

##@ Run

.PHONY: run
run: ## Serve on 127.0.0.1:8080 with a private PostgreSQL; Ctrl-C stops both
	@.ci/install postgresql
	@mkdir -p .bin && $(GO) build -o .bin/coupond ./cmd/coupond
	@exec .bin/coupond dev $(ARGS)

.PHONY: psql
psql: ## Open psql on the database of make run
	@if [ ! -x .coupond/psql ]; then echo 'make psql: start make run in another terminal first' >&2; exit 1; fi
	@exec .coupond/psql $(ARGS)

.PHONY: sql
sql: ## Print the schema and the functions as a script for psql: make --silent sql >install.sql
	@$(GO) run ./cmd/coupond sql

.PHONY: sale
sale: ## Run a flash sale against the running service; options: make sale ARGS=--help
	@$(GO) run ./bench/sale $(ARGS)

.PHONY: docker-up
docker-up: ## Serve on 127.0.0.1:8080 in containers, in the background
	VERSION='$(VERSION)' COMMIT='$(COMMIT)' $(COMPOSE) up --build --detach

.PHONY: docker-down
docker-down: ## Stop the containers and keep their data; ARGS=--volumes deletes it
	$(COMPOSE) down $(ARGS)

##@ Test

.PHONY: test
test: needs ## Run every test under the race detector
	$(GO) run ./internal/pgtest/share $(GO) test $(RACE) -count=1 -parallel $(PARALLEL) -timeout 20m $(COVERAGE) ./...

.PHONY: cover
cover: COVERAGE = -coverprofile=coverage/profile.out
cover: coverage test ## The same with coverage; at least 80 % of api, pgstore and db
	@$(GO) tool cover -html=coverage/profile.out -o coverage/index.html && echo 'details: coverage/index.html'
	@awk 'NR > 1 { sub("/[^/]*$$", "", $$1); all[$$1] += $$2; if ($$3) hit[$$1] += $$2 } \
		END { for (p in all) if (p ~ "^[^/]*/(api|pgstore|db)$$") { n++; percent = 100 * hit[p] / all[p]; \
			printf "%-32s %6.1f %% of statements\n", p, percent; if (percent < 80) low = p } \
			if (low) print low " is below 80 %"; exit low != "" || n != 3 }' coverage/profile.out

.PHONY: stress
stress: needs ## Run the flash-sale tests and print their counts
	@$(GO) test -list '^TestSale' ./cmd/coupond | grep -q '^TestSale' || { echo 'make stress: no test is named TestSale…' >&2; exit 1; }
	$(GO) test $(RACE) -count=1 -v -run '^TestSale' ./cmd/coupond

.PHONY: test-sql
test-sql: ## Test the SQL functions with pgTAP: make test-sql ARGS=claim_coupon
	@test/pgtap/run $(ARGS)

# SEED=0 takes the seed from the clock.
DURATION ?= 1m
SEED ?= 0
REPORT ?= faults/report.md
.PHONY: faults
faults: ## Inject faults and check the answers for linearizability: make faults DURATION=10m SEED=7
	@mkdir -p .bin && $(GO) build -o .bin/faults ./test/faults
	@exec .bin/faults --duration $(DURATION) --seed $(SEED) --report $(REPORT) $(ARGS)

.PHONY: mutants
mutants: ## Plant each bug of test/mutants and check that its test fails
	@$(GO) run ./test/mutants $(ARGS)

# A number of inputs, not a time: with a time, Go before 1.27 sometimes reports its own deadline as
# a failure (go.dev/issue/75804).
FUZZTIME ?= 10000x
.PHONY: fuzz
fuzz: ## Fuzz bodies, names, paths and headers: make fuzz FUZZTIME=1000000x
	@targets=$$($(GO) test -list '^Fuzz' ./api | grep '^Fuzz') && for target in $$targets; do \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./api || exit 1; done

.PHONY: lint
lint: $(GOLANGCI_LINT) $(ACTIONLINT) ## Run golangci-lint, go vet, shellcheck, yamllint and actionlint
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run ./_examples/go
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet ./...
	$(GO) mod tidy -diff
	git grep -lE '^#!(/bin/(ba)?sh|/usr/bin/env bash)' | xargs shellcheck
	shellcheck --shell=sh internal/localpg/watchdog.sh
	yamllint --strict .
	$(ACTIONLINT)

.PHONY: ci
ci: ## Run everything that decides whether a change lands, on a clean Debian machine; or ARGS=SECTION
	.ci/run $(ARGS)

##@ Benchmark

.PHONY: bench
bench: ## Compare with the alternatives: all workloads, 5 rounds, 25 minutes; writes bench/results
	$(GO) run ./bench/race $(ARGS)

.PHONY: bench-quick
bench-quick: ## Compare in the four most important workloads, once, 2 minutes; writes nothing
	$(GO) run ./bench/race --rounds 1 --duration 2s --workloads '^(hot|sell|1,000 |one idle)' --out '' $(ARGS)

##@ Deploy

# Built first: a SIGTERM would end `go run` and leave its program running.
.PHONY: drill
drill: ## Break a deployment during a sale and check every answer: make drill ARGS=failover
	@mkdir -p .bin && $(GO) build -o .bin/drill ./deploy/drill
	@VERSION='$(VERSION)' exec .bin/drill $(ARGS)

.PHONY: release
release: $(CYCLONEDX) ## Build a release into dist/: archives, bills of materials, checksums; reproducible
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' GO='$(GO)' SBOM='$(CURDIR)/$(CYCLONEDX)' deploy/release

# What the tests need. go test hides what tests of packages that pass have skipped.
.PHONY: needs
needs:
	@.ci/install postgresql $(if $(RACE),gcc libc6-dev)
	@[ -z '$(RACE)' ] || command -v "$$($(GO) env CC)" >/dev/null || { \
		echo 'make: the race detector needs a C compiler (Debian: apt-get install gcc libc6-dev); or: make test RACE=' >&2; exit 1; }
	@for program in psql haproxy promtool; do \
		command -v $$program >/dev/null || echo "$$program is not installed: tests that need it are skipped"; done
	@ls /usr/share/postgresql/*/extension/plproxy.control >/dev/null 2>&1 || \
		echo 'PL/Proxy is not installed (Debian: postgresql-15-plproxy): tests that need it are skipped'

coverage:
	@mkdir -p $@

$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
$(ACTIONLINT):
	$(call tool,github.com/rhysd/actionlint/cmd/actionlint)
$(CYCLONEDX):
	$(call tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod)
