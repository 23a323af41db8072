# Every target is one or two visible commands.
CONNECTORS := $(notdir $(patsubst %/main.go,%,$(wildcard connectors/*/main.go)))
GOFLAGS_BUILD := -trimpath -ldflags '-s -w'

.PHONY: build quickstart test check gen golden fuzz bench soak

build:
	@mkdir -p bin
	go build $(GOFLAGS_BUILD) -o bin/millrace ./cmd/millrace
	@for c in $(CONNECTORS); do echo go build -o bin/millrace-$$c ./connectors/$$c; go build $(GOFLAGS_BUILD) -o bin/millrace-$$c ./connectors/$$c || exit 1; done

quickstart: build
	bin/millrace quickstart

# Brings up the servers, then runs every test on them.
test:
	deploy/testbed/test.sh

check:
	test -z "$$(gofmt -l .)"
	go vet ./...
	go test -race -short ./...

gen:
	protoc -I plugins/internal/pb --go_out=plugins/internal/pb --go_opt=paths=source_relative --go-grpc_out=plugins/internal/pb --go-grpc_opt=paths=source_relative plugins/internal/pb/*.proto

golden:
	go test ./connectors/... -run Golden -update

T ?= 10m
fuzz:
	go test ./logstore/recordbatch -run '^$$' -fuzz . -fuzztime $(T)

bench:
	go test ./... -run '^$$' -bench . -benchtime 1s

soak:
	MILLRACE_SOAK=1 go test -count=1 -timeout 4h ./...
