# `make` lists the targets that have a `##` line. Needs GNU make 3.81 (macOS) or newer and a POSIX
# shell.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

GO ?= go
# Passed to the program behind a target: make psql ARGS='-c "table coupons"'
ARGS ?=
# What `coupond version` prints in a release and in the image, where Go cannot ask git.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

# Tools are built from source into .bin/ at these versions, so that go.mod lists only what the
# service and its tests need. The version is part of the file name: a new version is built again.
GOLANGCI_LINT_VERSION := v2.15.0
ACTIONLINT_VERSION := v1.7.12
GOVULNCHECK_VERSION := v1.9.0
CYCLONEDX_VERSION := v1.10.0
GOLANGCI_LINT := .bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
ACTIONLINT := .bin/actionlint-$(ACTIONLINT_VERSION)
GOVULNCHECK := .bin/govulncheck-$(GOVULNCHECK_VERSION)
CYCLONEDX := .bin/cyclonedx-gomod-$(CYCLONEDX_VERSION)

# The recipe that builds a tool: $(call tool,package,version).
tool = @echo "building $(notdir $(1)) $(2), once" && mkdir -p .bin && \
	GOBIN="$(CURDIR)/.bin" $(GO) install $(1)@$(2) && mv .bin/$(notdir $(1)) $@

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

##@ Run

.PHONY: run
run: ## Serve on 127.0.0.1:8080 with a private PostgreSQL; Ctrl-C stops both
	@mkdir -p .bin && $(GO) build -o .bin/coupond ./cmd/coupond
	@exec .bin/coupond dev $(ARGS)

.PHONY: psql
psql: ## Open psql on the database of `make run`
	@if [ ! -x .coupond/psql ]; then echo 'make psql: no development database is running here; type "make run" in another terminal' >&2; exit 1; fi
	@exec .coupond/psql $(ARGS)

.PHONY: sql
sql: ## Print the schema and the functions as a script for psql: make --silent sql >install.sql
	@$(GO) run ./cmd/coupond sql

.PHONY: sale
sale: ## Run a flash sale against the running service; options: make sale ARGS=--help
	@$(GO) run ./bench/sale $(ARGS)

.PHONY: docker-up
docker-up: ## Serve on :8080 in containers, in the background
	VERSION='$(VERSION)' COMMIT='$(COMMIT)' $(COMPOSE) up --build --detach

.PHONY: docker-down
docker-down: ## Stop the containers and keep their data (make docker-down ARGS=--volumes deletes it)
	$(COMPOSE) down $(ARGS)

##@ Test

.PHONY: test
test: compiler postgres ## Run every test under the race detector
	$(GO) test $(RACE) -count=1 -timeout 20m ./...

.PHONY: stress
stress: compiler postgres ## Run the flash-sale tests and print their counts
	@$(GO) test -list '^TestSale' ./cmd/coupond | grep -q '^TestSale' || { echo 'make stress: no test is named TestSale…' >&2; exit 1; }
	$(GO) test $(RACE) -count=1 -v -run '^TestSale' ./cmd/coupond

.PHONY: test-sql
test-sql: ## Test the SQL functions with pgTAP: make test-sql ARGS=claim_coupon
	@test/pgtap/run $(ARGS)

.PHONY: test-dba
test-dba: compiler ## Run the commands of docs/dba.md, a restore and a sale through PgBouncer
	$(GO) vet -tags dba ./test/handbook
	$(GO) test $(RACE) -tags dba -count=1 -timeout 10m ./test/handbook $(ARGS)

.PHONY: test-browser
test-browser: ## Use /docs in a headless Chromium (Debian: chromium); screenshots go to pictures/
	$(GO) vet -tags browser ./api/browsertest
	COUPOND_PICTURES='$(CURDIR)/pictures' $(GO) test -tags browser -count=1 -timeout 10m ./api/browsertest $(ARGS)

.PHONY: examples
examples: ## Build, test and run _examples against a service, through its restart (needs jq)
	.ci/examples

.PHONY: clients
clients: ## Generate clients from openapi.yaml with two generators, and compile them
	.ci/clients

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

.PHONY: bounds
bounds: ## Overload the service and upgrade it under load, 15 minutes; writes docs/bounds.md
	COUPOND_BOUNDS=1m COUPOND_BOUNDS_DOC="$(CURDIR)/docs/bounds.md" $(GO) test -count=1 -v -timeout 40m -run '^TestBounds$$' ./cmd/coupond

# Both start the containers of deploy/ha (127.0.0.1:8090) and delete them with their data.
.PHONY: failover
failover: ## Kill the primary under load, three times, and check that no acknowledged claim is lost
	VERSION='$(VERSION)' $(GO) run ./deploy/ha/drill $(ARGS)

.PHONY: rolling
rolling: ## Replace both instances of the service under load and check that no request fails
	VERSION='$(VERSION)' $(GO) run ./deploy/ha/drill --kills 0 $(ARGS)

# Starts the containers of deploy/shards (127.0.0.1:8091) and deletes them with their data. Built
# first: a SIGTERM would end `go run` and leave its program running.
.PHONY: shards
shards: ## Sell on four shards, kill one, move a partition, and check every answer
	@mkdir -p .bin && $(GO) build -o .bin/shards ./deploy/shards/drill
	@VERSION='$(VERSION)' exec .bin/shards $(ARGS)

# SEED=0 takes the seed from the clock.
DURATION ?= 1m
SEED ?= 0
REPORT ?= faults/report.md
.PHONY: faults
faults: ## Inject faults and check the answers for linearizability: make faults DURATION=10m SEED=7
	@mkdir -p .bin && $(GO) build -o .bin/faults ./test/faults
	@exec .bin/faults --duration $(DURATION) --seed $(SEED) --report $(REPORT) $(ARGS)

.PHONY: metrics-check
metrics-check: ## Check metrics, alerts and dashboard (needs promtool; Debian: prometheus)
	cd deploy/observability && promtool check config prometheus.yml && promtool test rules rules_test.yml
	$(COMPOSE) -f docker-compose.yml -f deploy/observability/docker-compose.yml config --quiet
	TEST_PROMTOOL=required $(GO) test -count=1 -timeout 5m -run '^Test(MetricsOf|Observability)' ./cmd/coupond

.PHONY: cover
cover: postgres ## Measure the coverage of api, pgstore and db; at least 80 % each
	@mkdir -p coverage
	@$(GO) test -count=1 -timeout 20m -coverprofile=coverage/profile.out ./api ./pgstore ./db >coverage/log.txt 2>&1 || \
		{ cat coverage/log.txt; exit 1; }
	@$(GO) tool cover -html=coverage/profile.out -o coverage/index.html
	@awk '$$1 == "ok" { n++; printf "%-32s %6s of statements\n", $$2, $$5; if ($$5 + 0 < 80) low = $$2 } \
		END { if (low) print low " is below 80 %"; exit low != "" || n != 3 }' coverage/log.txt
	@echo 'details: coverage/index.html'

.PHONY: lint
lint: $(GOLANGCI_LINT) $(ACTIONLINT) ## Run golangci-lint, go vet, shellcheck, yamllint and actionlint
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run ./_examples/go
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet ./...
	$(GO) mod tidy -diff
	shellcheck .ci/run .ci/session .ci/newcomer .ci/compose .ci/release .ci/examples .ci/clients deploy/release test/pgtap/run deploy/ha/node deploy/ha/first deploy/compose/first deploy/shards/setup deploy/shards/move
	shellcheck --shell=sh internal/localpg/watchdog.sh _examples/curl/coupons.sh
	yamllint --strict .
	$(ACTIONLINT)

.PHONY: vuln
vuln: $(GOVULNCHECK) ## Check for known vulnerabilities (needs the internet)
	$(GOVULNCHECK) ./...

.PHONY: newcomer
newcomer: ## Run the README's session on a fresh clone with make run, Ctrl-C and a restart
	.ci/newcomer

.PHONY: docker-test
docker-test: ## Run the README's session in containers, with SIGTERM and a restart
	.ci/compose

.PHONY: ci
ci: ## Run everything that decides whether a change lands, on a clean Debian machine
	bash .ci/run

##@ Ship

.PHONY: release
release: $(CYCLONEDX) ## Build a release into dist/: archives, bills of materials, checksums; reproducible
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' GO='$(GO)' SBOM='$(CURDIR)/$(CYCLONEDX)' deploy/release

.PHONY: release-test
release-test: ## Build a release twice, compare the bytes, and run its binary in an empty folder
	.ci/release

.PHONY: kubernetes
kubernetes: ## Validate deploy/kubernetes with the API server's own code
	cd deploy/kubernetes/check && $(GO) vet ./... && $(GO) mod tidy -diff && $(GO) test -count=1 ./...

##@ Benchmark

.PHONY: bench
bench: ## Compare with the alternatives: all workloads, 5 rounds, 25 minutes; writes bench/results
	$(GO) run ./bench/race $(ARGS)

.PHONY: bench-quick
bench-quick: ## Compare in the four most important workloads, once, 2 minutes; writes nothing
	$(GO) run ./bench/race --quick --out '' $(ARGS)

# The race detector needs a C compiler, except on macOS.
RACE ?= -race
.PHONY: compiler
compiler:
	@[ '$(RACE)' != -race ] || [ "$$(uname)" = Darwin ] || command -v "$$($(GO) env CC)" >/dev/null || { \
		echo 'make: the race detector needs a C compiler' >&2; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; \
		else \
			echo 'Debian: apt-get install gcc libc6-dev; or run without the detector: make test RACE=' >&2; exit 1; \
		fi; }

# go test hides the output of packages that pass. This prints which PostgreSQL the tests use and
# what they skip because a program is missing.
.PHONY: postgres
postgres:
	@$(GO) test -count=1 -v -run '^Test(Empty|Server_ForProxy)$$' ./internal/pgtest | grep -vE '^(=== |--- PASS|PASS|ok )'
	@command -v promtool >/dev/null || echo 'promtool is missing (Debian: prometheus): metric names are not checked'

$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))
$(ACTIONLINT):
	$(call tool,github.com/rhysd/actionlint/cmd/actionlint,$(ACTIONLINT_VERSION))
$(GOVULNCHECK):
	$(call tool,golang.org/x/vuln/cmd/govulncheck,$(GOVULNCHECK_VERSION))
$(CYCLONEDX):
	$(call tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod,$(CYCLONEDX_VERSION))
