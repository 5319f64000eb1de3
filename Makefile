# edged: `make demo` shows calls passing, `make test` runs every test. `make help` lists the rest.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 60s

.PHONY: help build demo test packages need-go fmt vet unit oracle fuzz fuzz-short lab lab-user lab-full package image charts test-system bench-sip bench-media bench-turn bench-tcp bench-h323 bench-ft bench-mailbox soak-mailbox soak-reload soak-tcp tables lint cover clean bench-tunnel-idle soak-tunnel bench-tunnel bench-tunnel-delay

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: need-go ## bin/edged, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/edged ./cmd/edged

demo: build ## real calls between two networks on this machine; no root, no packages
	./bin/edged demo

test: need-go packages fmt vet unit tables oracle charts fuzz-short lab lab-user ## every test; as root also installs what the lab needs

packages:
	@tools/packages.sh

need-go:
	@tools/need-go.sh

fmt:
	@bad=$$(gofmt -l cmd pkg internal lab bench tools); if [ -n "$$bad" ]; then echo "not gofmt'ed:"; echo "$$bad"; exit 1; fi

vet: need-go
	go vet ./...
	go vet -tags lab,asterisk ./...

unit: need-go ## unit tests, with the race detector where there is a C compiler
	@if command -v gcc >/dev/null || command -v cc >/dev/null; then set -x; CGO_ENABLED=1 go test -race ./...; \
	else echo "no C compiler, so no race detector"; set -x; go test ./...; fi

tables: need-go ## what becomes of each torture message (RFC 4475, RFC 5118) and of the SDP corpora
	@mkdir -p bin
	@go test -count=1 -v -run '^(TestRFC4475|TestRFC5118|TestCorpora)$$' ./pkg/sipalg ./pkg/sipalg/sdp >bin/tables.txt 2>&1 || { cat bin/tables.txt; exit 1; }
	@sed -n 's/^ *[a-z_]*_test\.go:[0-9]*: //p; /SKIP/p' bin/tables.txt

oracle: need-go ## the SIP codec against gosip's and sipgo's parsers; a module of its own
	cd pkg/sipalg/sipmsg/oracle && go test ./...

fuzz: need-go ## every fuzz target for FUZZTIME (60s)
	@tools/fuzz.sh $(FUZZTIME)

fuzz-short: need-go ## every fuzz target for 2 s
	@tools/fuzz.sh 2s

lab: need-go ## real networks and real peers; needs root, skips loudly without
	@go build -o bin/labreport ./tools/labreport
	@echo "lab: network namespaces, sipp, baresip, kamailio; a line per case as it ends"
	@go test -tags lab -count=1 -timeout 20m -json ./lab/... | bin/labreport

lab-user: need-go ## the lab's calls again with edged as nobody, without a capability: media in user space
	@go build -o bin/labreport ./tools/labreport
	@echo "lab-user: the lab again, edged unprivileged; without what needs privileges or has no media of the edge"
	@EDGED_LAB_UNPRIVILEGED=1 EDGED_LAB_DATAPATH=user \
		go test -tags lab -count=1 -timeout 20m -json -skip 'FastPath|Transparent|Control|Oracle|Tunnel|Groove|Console|Browser|Janus|Pion|TestReload/^tc$$|TestCaptureMedia/^tc$$' ./lab/... | bin/labreport

lab-full: ## the lab with the full loads: 1,000 calls at 50 a second each way
	EDGED_LAB_FULL=1 $(MAKE) lab

package: need-go ## deb and rpm for amd64 and arm64 into bin/packages
	@tools/package.sh

image: build ## the container image edged:latest, with docker or buildah; no network needed
	@tools/image.sh

charts: need-go ## the Helm chart, rendered by Helm's own engine; a module of its own
	cd deploy/helm && go test ./...

test-system: build package ## the deb in a booted Debian, the image as a container; needs root, debootstrap, systemd-container, buildah
	@go build -o bin/labreport ./tools/labreport
	@go test -tags lab,system -count=1 -timeout 20m -json -run '^(TestPackage|TestImage)$$' ./lab | bin/labreport -noskip

bench-sip: need-go ## calls a second against Kamailio and rtpengine; needs root
	go run ./bench/sip

bench-media: need-go ## media through tc, XDP, user space, rtpengine, nftables NAT, routing; 15 minutes; needs root
	go run ./bench/media

bench-turn: need-go ## TURN through tc, XDP, user space and TLS, and allocations, against coturn; needs root
	go run ./bench/media -turn -streams 100,1000
	go run ./bench/turn

bench-tcp: need-go ## TCP through the gateway against HAProxy, nginx, NAT and routing; needs root
	go run ./bench/tcp

bench-h323: need-go ## H.323 call set-ups against the kernel's helper; needs root
	go run ./bench/h323

bench-tunnel: build ## a stream through the tunnel against stunnel, OpenSSH, HAProxy and TCP alone; on loopback
	go run ./bench/tunnel

bench-tunnel-idle: build ## memory of a relay with 10,000 idle agents, and how long until all are back after it was killed
	go run ./bench/tunnel/idle

bench-tunnel-delay: build ## a stream and datagrams over a path of 40 ms, first unlimited, then of 1 Gb/s; 8 minutes; needs root
	go run ./bench/tunnel -rtt 40ms -rounds 3 -time 5s -out bench/out/tunnel-delay.json
	go run ./bench/tunnel -rtt 40ms -rate 1000 -queue 40ms -rounds 3 -time 5s -out bench/out/tunnel-delay-1000.json

bench-ft: need-go ## a Messenger file transfer through the gateway against HAProxy; needs root
	go run ./bench/ft

bench-mailbox: need-go ## durable messages a second against JetStream and a plain log; a module of its own
	cd bench/mailbox && go run . -out ../out/mailbox.json

soak-mailbox: need-go ## 100,000 messages to 100 devices while their store is killed at random
	EDGED_SOAK=1 go test -count=1 -timeout 1h -v -run 'TestKill' ./pkg/tunnel/mailbox/...

soak-reload: need-go ## 1,000 reloads, good and broken files in turn, during 200 calls on each datapath; needs root
	EDGED_LAB_FULL=1 go test -tags lab -count=1 -timeout 30m -parallel 1 -v -run '^TestReload' ./lab | grep -v '"level":'

soak-tunnel: need-go ## 1 GiB each way by every rung while its carrier is killed 100 times; an hour or two; needs root
	EDGED_SOAK=1 go test -tags lab -count=1 -parallel 2 -timeout 12h -v -run '^TestTunnelRungsKilled$$' ./lab

soak-tcp: need-go ## 100 random streams of 1 GiB through a joined pair of connections; half an hour
	EDGED_SOAK=1 go test -count=1 -timeout 3h -v -run 'TestStreams/loop' ./pkg/splice

lint: need-go ## golangci-lint, the version of tools/lint (the first run builds it)
	go build -modfile=tools/lint/go.mod -o bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	bin/golangci-lint run

cover: need-go ## test coverage by package
	@mkdir -p bin
	go test -coverprofile=bin/cover.cov ./... && go tool cover -func=bin/cover.cov | tail -1

clean: ## remove what was built
	rm -rf bin bench/out
