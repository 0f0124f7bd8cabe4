# make demo    everything once, on real microVMs: image, snapshot, one cold container, three warm ones
# make test    every test, the real-VM suite included
# make build   bin/warmboot and bin/warmboot-guest
SHELL := /bin/sh
export CGO_ENABLED ?= 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: demo test unit e2e build deps lint bench generate clean

demo: deps build
	scripts/demo

test: deps unit e2e

# The race detector needs cgo.
unit:
	go vet ./...
	CGO_ENABLED=1 go test -race -timeout 20m ./...

# Real microVMs with a real Docker. The runtime image is built once and kept in .cache.
e2e: deps build
	WARMBOOT_E2E=1 go test -v -count=1 -timeout 60m ./test/e2e/...

build:
	go build -trimpath -ldflags "-s -w" -o bin/warmboot-guest ./cmd/warmboot-guest
	go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/warmboot ./cmd/warmboot

deps:
	@scripts/install-deps

lint:
	go run $(GOLANGCI) run ./...

bench: deps build
	bin/warmboot bench --floor

# The guest API's Go code, from proto/.
generate:
	go run github.com/bufbuild/buf/cmd/buf@v1.50.0 generate

clean:
	rm -rf bin .cache
