.PHONY: dev test check lint fuzz bench docs

# Starts everything on this machine: embedded NATS, views, HTTP.
dev:
	go run ./cmd/credstream serve

test:
	go test -timeout 30m ./...

lint:
	go vet ./...
	golangci-lint run

check: lint
	go test -race -timeout 30m ./...

# Twenty seconds for each fuzz target.
fuzz:
	./.ci/fuzz 20s

# Starts the service, measures it and writes docs/benchmarks.md.
bench:
	go run ./cmd/credstream-bench

# Writes the generated pages, the comments of the OpenAPI document and the generated part of
# the client, which tests keep true.
docs:
	go test . -run "TestReference|TestPermissionsPage|TestGeneratedClient" -update
	go test ./cmd/credstream/cli -run TestConfigReference -update
