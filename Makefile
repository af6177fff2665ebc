# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists what there is. Everything that is made goes to build/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE ?= weft-net.local/weft:dev
LAB ?= weft
NODES ?= 3
FUZZTIME ?= 20s
# go test's own cache makes a second run of what has not changed free. What takes longest
# is named first where all is tested, so that the rest runs beside it.
GOTESTFLAGS ?= -timeout 15m

BIN := build/bin
TOOLS := build/tools
export CGO_ENABLED ?= 0
export GOFLAGS ?= -buildvcs=false
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/$(TOOLS):$(PATH)

# Without a build id the same sources give the same bytes.
GO_LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
HELM_VERSION := v3.22.0
# Helm learns from its build which Kubernetes it renders for when nobody tells it.
HELM_LDFLAGS := -s -w -X helm.sh/helm/v3/internal/version.version=$(HELM_VERSION) \
	$(foreach p,chartutil lint/rules,-X helm.sh/helm/v3/pkg/$(p).k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$(p).k8sVersionMinor=36)

##@ General

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Programs to build/bin: weft, weft-agent, weft-operator, weft-cni, weft-lab
	go build -trimpath -ldflags '$(GO_LDFLAGS)' -o $(BIN)/ ./cmd/...
	$(MAKE) lab
	ln -sf weft $(BIN)/kubectl-weft

.PHONY: lab
lab: ## Only weft-lab
	cd lab && go build -trimpath -ldflags '$(GO_LDFLAGS)' -o ../$(BIN)/weft-lab ./cmd/weft-lab

.PHONY: generate
generate: $(TOOLS)/controller-gen ## BPF objects, deep copies, custom resource definitions
	go generate ./internal/... ./test/bench/...
	controller-gen object:headerFile=tools/boilerplate.txt \
		crd paths=./api/... output:crd:dir=install/helm/weft/crds

.PHONY: previous-release
previous-release: ## Keep the BPF object of REF, a release, as the one that upgrades are tested from
	test -n "$(REF)" # a tag
	git show $(REF):internal/datapath/object/datapath_bpfel.o | gzip -9nc > internal/datapath/testdata/previous.o.gz

.PHONY: image
image: build ## Container image as build/image/weft.tar
	go run ./install/image -name $(IMAGE) -version $(VERSION) -programs $(BIN) -out build/image/weft.tar -cache build/image/debs

.PHONY: deps
deps: ## Debian packages that build and tests need (as root)
	test/deps.sh

.PHONY: clean
clean: ## Remove build/ but for what took long: tools, packages, Kubernetes
	rm -rf build/bin build/test build/log build/image/weft.tar build/kernels/*.initrd build/kernels/tests

##@ Try it

.PHONY: demo
demo: ## A 3-node Kubernetes on this machine with Weft, tested and left running
	test/demo.sh up $(LAB) $(NODES)

.PHONY: demo-down
demo-down: ## End the demo and remove all that it made
	test/demo.sh down $(LAB)

##@ Test

.PHONY: check
check: ## Build, lint, generated files, unit and BPF tests; 5 minutes at most when warm
	test/step.sh build $(MAKE) build
	test/step.sh lint $(MAKE) lint
	test/step.sh generated $(MAKE) generated
	test/step.sh unit $(MAKE) unit

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/helm $(TOOLS)/promtool ## Linters over Go, shell, the chart and its alerts
	golangci-lint run --allow-serial-runners ./...
	cd lab && golangci-lint run --allow-serial-runners --config ../.golangci.yml ./...
	helm lint --quiet --strict install/helm/weft
	promtool check rules install/helm/weft/files/rules.yaml
	shellcheck --severity=style test/*.sh .ci/run

.PHONY: generated
generated: ## Fail if generated files differ from what their sources give
	test/generated.sh

.PHONY: unit
unit: $(TOOLS)/gotestsum $(TOOLS)/helm $(TOOLS)/promtool ## Unit tests, BPF programs in Program.Run included (as root for the kernel's part)
	@mkdir -p build/test
	gotestsum --format pkgname-and-test-fails --hide-summary skipped --jsonfile build/test/unit.json -- $(GOTESTFLAGS) ./internal/datapath ./...
	cd lab && gotestsum --format pkgname-and-test-fails --hide-summary skipped --jsonfile ../build/test/lab.json -- $(GOTESTFLAGS) ./...

.PHONY: race
race: $(TOOLS)/gotestsum $(TOOLS)/helm $(TOOLS)/promtool ## Unit tests under the race detector (needs gcc)
	@mkdir -p build/test
	CGO_ENABLED=1 gotestsum --format pkgname-and-test-fails --hide-summary skipped --jsonfile build/test/race.json -- -race $(GOTESTFLAGS) ./...

.PHONY: e2e
e2e: image $(TOOLS)/gotestsum $(TOOLS)/helm ## End-to-end tests in a lab of their own
	test/e2e.sh

.PHONY: test
test: ## What CI runs: check, e2e and conformance without kube-proxy; installs what it needs first
	test/ci.sh test

.PHONY: test-full
test-full: ## Everything there is: test, race, fuzz, kernels, upstream conformance, benchmarks
	test/ci.sh full

.PHONY: test-e2e-upstream
test-e2e-upstream: image $(TOOLS)/helm ## Kubernetes' own [sig-network] tests: conformance, Services, Networking, with kube-proxy in both modes and without
	test/upstream.sh

.PHONY: test-kernels
test-kernels: ## Tests of the datapath on Debian's kernels 6.1 and 6.12 under qemu, to docs/kernels.md (as root)
	test/deps.sh qemu-system-x86 kmod
	@mkdir -p build/kernels
	go build -o build/kernels/run ./test/kernels
	build/kernels/run -page docs/kernels.md

.PHONY: bench-cni
bench-cni: build ## CNI latency and agent memory, to build/bench/cni.json
	@mkdir -p build/bench
	go build -trimpath -ldflags '$(GO_LDFLAGS)' -o build/bench/floor ./test/bench/cni/floor
	go run ./test/bench/cni -out build/bench/cni.json

.PHONY: bench-datapath
bench-datapath: build ## Pod to pod across nodes, against a bare forwarder, kernel VXLAN and ptp; restarts of the agent; to build/bench/datapath.json
	test/deps.sh iperf3 containernetworking-plugins
	@mkdir -p build/bench
	go build -trimpath -ldflags '$(GO_LDFLAGS)' -o build/bench/ ./test/bench/cni ./test/bench/datapath ./test/traffic
	build/bench/cni -restarts -out build/bench/restart.json
	build/bench/datapath -with build/bench/restart.json -out build/bench/datapath.json

.PHONY: bench-services
bench-services: build ## Services: Weft beside kube-proxy (iptables, nftables) with 1, 1,000 and 10,000, to build/bench/services.json
	test/deps.sh iperf3
	$(BIN)/weft-lab build
	@mkdir -p build/bench
	go build -trimpath -ldflags '$(GO_LDFLAGS)' -o build/bench/ ./test/bench/datapath ./test/bench/services ./test/traffic
	build/bench/datapath -services 10000 -out build/bench/services-datapath.json
	build/bench/services -with build/bench/services-datapath.json -out build/bench/services.json

.PHONY: bench-ipam
bench-ipam: build ## 500 nodes join one API server at once: time, writes, ledger, operator's memory, to build/bench/ipam.json
	@mkdir -p build/bench
	WEFT_BENCH_NODES=500 WEFT_BENCH_OUT=$(CURDIR)/build/bench/ipam.json WEFT_OPERATOR_BIN=$(CURDIR)/$(BIN)/weft-operator \
		go test -count=1 -timeout 5m -run '^TestManyNodesJoinAtOnce$$' ./internal/operator

.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZTIME
	test/fuzz.sh $(FUZZTIME)

##@ Tools

.PHONY: tools
tools: $(TOOLS)/controller-gen $(TOOLS)/helm $(TOOLS)/gotestsum $(TOOLS)/golangci-lint $(TOOLS)/promtool ## Compile the tools pinned under tools/ (minutes when cold)

$(TOOLS)/controller-gen: tools/go.mod
	cd tools && go build -ldflags '-s -w' -o ../$@ sigs.k8s.io/controller-tools/cmd/controller-gen && touch ../$@

$(TOOLS)/gotestsum: tools/go.mod
	cd tools && go build -ldflags '-s -w' -o ../$@ gotest.tools/gotestsum && touch ../$@

$(TOOLS)/helm: tools/go.mod
	cd tools && go build -ldflags '$(HELM_LDFLAGS)' -o ../$@ helm.sh/helm/v3/cmd/helm && touch ../$@

$(TOOLS)/golangci-lint: tools/golangci-lint/go.mod
	cd tools/golangci-lint && go build -ldflags '-s -w' -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint && touch ../../$@

$(TOOLS)/promtool: test/promtool.sh
	test/promtool.sh $@ && touch $@
