# The only door: people, tests and CI come in through these targets. `make` alone prints them.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench chaos nats-server image

# Tests and examples read the server's path from here; an empty answer means that tools/nats-server has already said why.
SERVER = WATCHPOST_NATS_SERVER="$$(tools/nats-server)" && export WATCHPOST_NATS_SERVER

MINUTES ?= 10
SEED ?= 0

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## watch a real three-node Raft cluster lose its leader, and follow what happened
	@$(SERVER) && cargo run --locked --example demo

test: ## run every test, in containers where Docker works and on local servers elsewhere (ARGS="--test server")
	@tools/test $(ARGS)

check: ## formatting, lints, dependencies and licences, documentation; works offline once crates are fetched
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --quiet --test hygiene --test layering
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --features testing

bench: ## measure throughput and latency against a baseline that only does the unavoidable I/O
	@$(SERVER) && cargo bench --locked

chaos: ## kill, stop and cut at random for MINUTES=10 from SEED=0 (0: a new one, printed), then prove the log
	@$(SERVER) && WATCHPOST_CHAOS_MINUTES=$(MINUTES) WATCHPOST_CHAOS_SEED=$(SEED) \
		cargo test --locked --test faults whatever -- --nocapture

nats-server: ## print the path of a NATS server, installing the pinned one first if there is none
	@tools/nats-server

image: ## build the images watchpost and watchpost-nats from scratch, pulling nothing
	@tools/nats-image
	@tools/image
