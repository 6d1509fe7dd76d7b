# `make` alone lists what there is: every target that has a `##` line.
# GNU make 3.81 (macOS) and a POSIX shell are enough to read this file.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

GO ?= go
# Passed on to the program behind a target: make psql ARGS='-c "table coupons"'
ARGS ?=
# What `coupond version` says in a release and in the image, where Go cannot ask git.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

# The tools are built from source at these versions into .bin/, once: go.mod stays a list of what the
# service and its tests need, and everybody's linters say the same. The version in the file's name makes a
# new version build again.
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
		/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

##@ Run

.PHONY: run
run: ## Serve on :8080 with a PostgreSQL of its own; Ctrl-C stops both
	@mkdir -p .bin && $(GO) build -o .bin/coupond ./cmd/coupond
	@exec .bin/coupond dev $(ARGS)

.PHONY: psql
psql: ## Open psql on the database of the running `make run`
	@if [ ! -x .coupond/psql ]; then echo 'No development database runs here: type "make run" in another terminal.' >&2; exit 1; fi
	@exec .coupond/psql $(ARGS)

.PHONY: sql
sql: ## Print the whole schema and its functions as a script for psql: make --silent sql >install.sql
	@$(GO) run ./cmd/coupond sql

.PHONY: attack
attack: ## Let a crowd loose on the running service; see make attack ARGS=-help
	@$(GO) run ./bench/sale $(ARGS)

.PHONY: docker-up
docker-up: ## Serve on :8080 from containers (docker compose), in the background
	VERSION='$(VERSION)' COMMIT='$(COMMIT)' $(COMPOSE) up --build --detach

.PHONY: docker-down
docker-down: ## Stop the containers; their data stay (remove them: make docker-down ARGS=--volumes)
	$(COMPOSE) down $(ARGS)

##@ Prove

.PHONY: test
test: compiler postgres ## Run every test under the race detector: unit, database, HTTP, stress
	$(GO) test $(RACE) -count=1 -timeout 20m ./...

.PHONY: stress
stress: compiler postgres ## Run the sales alone and show their numbers: 50 for 5, 50,000 for 1,000, 50 coupons, two services
	@$(GO) test -list '^TestSale' ./cmd/coupond | grep -q '^TestSale' || { echo 'There are no sales to run.' >&2; exit 1; }
	$(GO) test $(RACE) -count=1 -v -run '^TestSale' ./cmd/coupond

.PHONY: test-sql
test-sql: ## Run the specification of the SQL functions (pgTAP), here or in a container; make test-sql ARGS=claim_coupon
	@test/pgtap/run $(ARGS)

.PHONY: test-dba
test-dba: compiler ## Type the DBA's handbook, restore a dump, sell through PgBouncer: with psql, pg_dump and pgbouncer of this machine
	$(GO) vet -tags dba ./test/handbook
	$(GO) test $(RACE) -tags dba -count=1 -timeout 10m ./test/handbook $(if $(ARGS),-args $(ARGS))

.PHONY: test-browser
test-browser: ## Open /docs in a headless Chromium (Debian: apt-get install chromium), wide and narrow, and try it out; it shows in pictures/
	$(GO) vet -tags browser ./api/browsertest
	COUPON_PICTURES='$(CURDIR)/pictures' $(GO) test -tags browser -count=1 -timeout 10m ./api/browsertest $(ARGS)

.PHONY: examples
examples: ## Build, vet, test and run _examples: curl (needs jq) and a Go client, on a real service and through its restart
	.ci/examples

.PHONY: mutants
mutants: ## Plant bugs, one at a time, and want each caught by the test named for it (four minutes); the table goes to docs/mutants.md
	@$(GO) run ./test/mutants $(ARGS)

# How much each of them is fuzzed: a number of inputs, some ten seconds of it. With a time, Go before 1.27 now and then
# reports its own end as a failure, "context deadline exceeded" (go.dev/issue/75804).
FUZZTIME ?= 10000x
.PHONY: fuzz
fuzz: ## Fuzz bodies, names, paths and headers through the whole handler, 10,000 inputs each; make fuzz FUZZTIME=1000000x
	@targets=$$($(GO) test -list '^Fuzz' ./api | grep '^Fuzz') && for target in $$targets; do \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./api || exit 1; done

.PHONY: bounds
bounds: ## Overload it, crowd it and upgrade it under load, a minute each (quarter of an hour); the table goes to docs/bounds.md
	COUPON_BOUNDS=1m COUPON_BOUNDS_DOC="$(CURDIR)/docs/bounds.md" $(GO) test -count=1 -v -timeout 40m -run '^TestBounds$$' ./cmd/coupond

# Both start the containers of deploy/ha (127.0.0.1:8090) and remove them with their data.
.PHONY: failover
failover: ## Kill the primary of three nodes under load, three times; want no answered claim lost (deploy/ha)
	VERSION='$(VERSION)' $(GO) run ./deploy/ha/try $(ARGS)

.PHONY: rolling
rolling: ## Replace two instances of the service behind a balancer under load; want no request to fail (deploy/ha)
	VERSION='$(VERSION)' $(GO) run ./deploy/ha/try -kills 0 $(ARGS)

# Starts the containers of deploy/shards (127.0.0.1:8091) and removes them with their data. Not by go run, which a SIGTERM ends
# while its program goes on.
.PHONY: shards-demo
shards-demo: ## Sell 1,000 coupons over four shards, kill one, move a partition under load; want clean books (deploy/shards)
	@mkdir -p .bin && $(GO) build -o .bin/shards-demo ./deploy/shards/try
	@VERSION='$(VERSION)' exec .bin/shards-demo $(ARGS)

# How long the proof goes on, and what its faults and requests are drawn from (0: from the clock).
DURATION ?= 1m
SEED ?= 0
REPORT ?= proof/report.md
.PHONY: prove
prove: ## Break everything around the running service, hold every answer against a model: make prove DURATION=10m SEED=7
	@mkdir -p .bin && $(GO) build -o .bin/prove ./test/faults
	@exec .bin/prove -duration $(DURATION) -seed $(SEED) -report $(REPORT) $(ARGS)

.PHONY: metrics-check
metrics-check: ## Judge a live service's metrics, the alerts, the dashboard and the compose file (needs promtool: Debian's prometheus)
	cd deploy/observability && promtool check config prometheus.yml && promtool test rules rules_test.yml
	$(COMPOSE) -f docker-compose.yml -f deploy/observability/docker-compose.yml config --quiet
	TEST_PROMTOOL=required $(GO) test -count=1 -timeout 5m -run '^Test(MetricsOf|Observability)' ./cmd/coupond

.PHONY: cover
cover: postgres ## Measure what the tests of api, pgstore and db run of their own package; at least 80 % each
	@mkdir -p coverage
	@$(GO) test -count=1 -timeout 20m -coverprofile=coverage/profile.out ./api ./pgstore ./db >coverage/log.txt 2>&1 || \
		{ cat coverage/log.txt; exit 1; }
	@$(GO) tool cover -html=coverage/profile.out -o coverage/index.html
	@awk '$$1 == "ok" { n++; printf "%-32s %6s of its statements\n", $$2, $$5; if ($$5 + 0 < 80) low = $$2 } \
		END { if (low) print low " is below 80 %"; exit low != "" || n != 3 }' coverage/log.txt
	@echo 'line by line: coverage/index.html'

.PHONY: lint
lint: $(GOLANGCI_LINT) $(ACTIONLINT) ## Run golangci-lint (gosec is one of them), go vet, gofmt, shellcheck, yamllint, actionlint
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run ./_examples/go
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet ./...
	$(GO) mod tidy -diff
	shellcheck .ci/run .ci/session .ci/newcomer .ci/compose .ci/release .ci/examples deploy/release test/pgtap/run deploy/ha/node deploy/ha/first deploy/shards/setup deploy/shards/move
	shellcheck --shell=sh internal/localpg/watchdog.sh _examples/curl/coupons.sh
	yamllint --strict .
	$(ACTIONLINT)

.PHONY: vuln
vuln: $(GOVULNCHECK) ## Ask the Go vulnerability database about what we call (needs the internet)
	$(GOVULNCHECK) ./...

.PHONY: newcomer
newcomer: ## Try the README's session on a fresh clone with make run, Ctrl-C and a restart
	.ci/newcomer

.PHONY: docker-test
docker-test: ## Try the README's session on containers, with SIGTERM and a restart
	.ci/compose

.PHONY: ci
ci: ## Run all that decides whether a change lands, from a clean Debian machine on
	bash .ci/run

##@ Ship

.PHONY: release
release: $(CYCLONEDX) ## Build the archives of a release into dist/: binaries, bills of materials, checksums; twice the same bytes
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' GO='$(GO)' SBOM='$(CURDIR)/$(CYCLONEDX)' deploy/release

.PHONY: release-test
release-test: ## Build a release, try its binary in an empty folder, build it again elsewhere and compare
	.ci/release

.PHONY: kubernetes
kubernetes: ## Render deploy/kubernetes and hold it against what an API server of Kubernetes takes
	cd deploy/kubernetes/check && $(GO) vet ./... && $(GO) mod tidy -diff && $(GO) test -count=1 ./...

##@ Race

.PHONY: bench
bench: ## Race the alternatives on this machine, all workloads, 5 rounds (3 take a quarter of an hour; keep it quiet); results and charts in bench/results
	$(GO) run ./bench/race $(ARGS)

.PHONY: bench-quick
bench-quick: ## Race the alternatives in the four most telling workloads, once (two minutes); keeps nothing
	$(GO) run ./bench/race -quick -out '' $(ARGS)

# The race detector needs a C compiler (not on macOS), which a new machine may lack.
RACE ?= -race
.PHONY: compiler
compiler:
	@[ '$(RACE)' != -race ] || [ "$$(uname)" = Darwin ] || command -v "$$($(GO) env CC)" >/dev/null || { \
		echo 'The race detector needs a C compiler.' >&2; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; \
		else \
			echo 'Debian: apt-get install gcc libc6-dev. Without it, and without the detector: make test RACE=' >&2; exit 1; \
		fi; }

# go test shows the output of no package that passes, so which PostgreSQL the tests find would never be seen, nor what they skip
# for want of a program; and whoever has no PostgreSQL yet sees here how it is got.
.PHONY: postgres
postgres:
	@$(GO) test -count=1 -v -run '^Test(EmptyHasNothing|ForProxyHasPLProxy)$$' ./internal/pgtest | grep -vE '^(=== |--- PASS|PASS|ok )'
	@command -v promtool >/dev/null || echo 'promtool is missing (Debian: prometheus): the names of the metrics are not judged'

$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))
$(ACTIONLINT):
	$(call tool,github.com/rhysd/actionlint/cmd/actionlint,$(ACTIONLINT_VERSION))
$(GOVULNCHECK):
	$(call tool,golang.org/x/vuln/cmd/govulncheck,$(GOVULNCHECK_VERSION))
$(CYCLONEDX):
	$(call tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod,$(CYCLONEDX_VERSION))
