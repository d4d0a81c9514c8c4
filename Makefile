.PHONY: dev test check lint fuzz bench bench-quick docs test-esdb chaos

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

# Starts the service, measures it, beside PostgreSQL where that is installed, and writes docs/benchmarks.md.
bench:
	go run ./cmd/credstream-bench

# The same in two minutes, with 10,000 credentials and short measurements. Writes no file.
bench-quick:
	go run ./cmd/credstream-bench -short

# Faults, many of each kind, on one machine: processes killed at any moment, power cuts of one disk and
# of the disks of three servers, servers that hang, are cut off or restarted. One line a test. The
# power cuts need root and a loop device. About 15 minutes.
chaos:
	@rm -f chaos.txt
	@go test ./cmd/credstream/app -count=1 -timeout 60m -chaos $(CURDIR)/chaos.txt -run "^(TestKillLoop|TestKeyRotationKilled|TestPowerCut|TestClusterFaults|TestClusterPowerCut|TestRollingRestart)$$" \
		-killtime 60s -cuts 20 -faults 20 -alldark 10 -rolls 5; code=$$?; cat chaos.txt; exit $$code

# The end-to-end tests that need no file of the log, and 20 kills, with the log in a server that
# speaks the protocol of EventStoreDB.
test-esdb:
	CREDSTREAM_TEST_EVENT_STORE=esdb go test ./cmd/credstream/app -count=1 -timeout 20m -run "TestLifeOfACredential|TestNATS$$|TestTenants$$|TestBadInput|TestTerminate|TestOnEventStoreDB|TestMoveLog" -killcount 20

# Writes the generated pages, the comments of the OpenAPI document, the generated part of the
# client and the golden files that are missing, which tests keep true.
docs:
	go test . -run "TestReference|TestPermissionsPage|TestGeneratedClient|TestShapesHaveVersions" -update
	go test ./events ./projections -run Golden -update
	go test ./cmd/credstream/cli -run TestConfigReference -update
