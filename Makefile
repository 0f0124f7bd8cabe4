# make demo    everything once, on real microVMs: image, snapshot, one cold container, three warm ones
# make test    every test, the real-VM suite included
# make build   bin/warmboot and bin/warmboot-guest
# make e2e-firecracker FIRECRACKER=binary JAILER=binary [RESULT=file.json]   the same on a real Firecracker, in a machine with KVM that is made for it
SHELL := /bin/sh
export CGO_ENABLED ?= 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Where tests leave what they have to say of a failure, when it is long.
ARTIFACTS := -artifacts -outputdir $(CURDIR)/.cache/test
# Runs `go test` and says at the end what failed and what was skipped, and why.
GOTESTSUM := go run gotest.tools/gotestsum@v1.13.0
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: demo test unit vm firecracker e2e-firecracker bench-firecracker build deps lint bench generate clean

demo: deps build
	scripts/demo

test: deps unit vm firecracker

# The race detector needs cgo.
unit:
	go vet ./...
	CGO_ENABLED=1 WARMBOOT_TEST_POSTGRES=1 $(GOTESTSUM) -- -race -timeout 20m ./...

# Whatever needs real microVMs: the guest agent, the QEMU driver, and the end-to-end suite with a real Docker and a real registry; and what
# needs KVM, in a machine that has it. One package after the other: an emulated CPU keeps a real one busy. The runtime images, ours and one
# with systemd, are built once.
vm: deps build
	@mkdir -p .cache/test
	image=$$(go run ./test/runtimeimage bin/warmboot-guest) && systemd=$$(go run ./test/systemdimage bin/warmboot-guest) && \
	WARMBOOT_E2E=1 WARMBOOT_TEST_NESTED=1 WARMBOOT_TEST_IMAGE=$$image WARMBOOT_TEST_SYSTEMD_IMAGE=$$systemd \
		$(GOTESTSUM) --format standard-verbose -- $(ARTIFACTS) -count=1 -p 1 -timeout 60m ./internal/guest ./internal/vmm/qemu ./test/e2e ./test/nestedhost

# What only a real Firecracker can show. Its binaries are no part of this project.
firecracker:
ifeq ($(FIRECRACKER),)
	@echo
	@echo "SKIPPED: nothing was tested on a real Firecracker. It takes the two binaries of a release, from"
	@echo "  https://github.com/firecracker-microvm/firecracker/releases"
	@echo "and neither KVM nor a network:"
	@echo "  make e2e-firecracker FIRECRACKER=/path/firecracker JAILER=/path/jailer"
else
	$(MAKE) e2e-firecracker
endif

e2e-firecracker: deps build
	@test -n "$(FIRECRACKER)" && test -n "$(JAILER)" || { echo "make e2e-firecracker needs FIRECRACKER=binary and JAILER=binary, those of one release" >&2; exit 1; }
	@mkdir -p .cache/test
	image=$$(go run ./test/runtimeimage bin/warmboot-guest) && systemd=$$(go run ./test/systemdimage bin/warmboot-guest) && \
	WARMBOOT_TEST_NESTED=1 WARMBOOT_TEST_IMAGE=$$image WARMBOOT_TEST_SYSTEMD_IMAGE=$$systemd WARMBOOT_TEST_FIRECRACKER=$(abspath $(FIRECRACKER)) WARMBOOT_TEST_JAILER=$(abspath $(JAILER)) \
		go test -v $(ARTIFACTS) -count=1 -timeout 180m -run '^TestFirecracker$(only)' ./test/nestedhost 2>&1 | \
		go run ./test/nestedhost/report -firecracker $(abspath $(FIRECRACKER)) -jailer $(abspath $(JAILER)) -warmboot $(VERSION) -o "$(report)"

# What came of the tests, or of a measurement, goes into the file RESULT, as JSON.
report = $(RESULT)
bench-firecracker: export WARMBOOT_BENCH_RESULT = $(abspath $(or $(RESULT),bench-firecracker.json))
bench-firecracker: report =
bench-firecracker: only = Bench
bench-firecracker: e2e-firecracker

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
	rm -rf bin .cache /var/tmp/warmboot-test-images
