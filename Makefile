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

# Writes the generated pages, the comments of the OpenAPI document, the generated part of the
# client and the golden files that are missing, which tests keep true.
docs:
	go test . -run "TestReference|TestPermissionsPage|TestGeneratedClient|TestShapesHaveVersions" -update
	go test ./events ./projections -run Golden -update
	go test ./cmd/credstream/cli -run TestConfigReference -update
