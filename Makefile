# homeostat's frame: `make` lists the targets. Each prints what it does, and doing one twice does no harm.

# rustup puts cargo into a folder that a fresh shell does not search yet; Debian's mariadbd is in /usr/sbin.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin:$(CURDIR)/target/tools/bin
# examples/shop/cell.star names its program below target/, so it has to be there.
unexport CARGO_TARGET_DIR

CELL ?= examples/shop
SEEDS ?= 2000
FAULTS ?= 100
# Tests that start servers get no faster by starting many of them at once. (The end-to-end tests take turns by themselves.)
TEST_THREADS ?= 2

HOMEOSTAT := target/release/homeostat

.DEFAULT_GOAL := help
.PHONY: help deps test-deps build up down test sim bench-cell soak-failover lint docs clean-state

help: ## list the targets
	@echo 'usage: make TARGET'
	@echo
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

deps: ## install what homeostat runs on, if it is missing (MariaDB; starts no service)
	@scripts/deps run

test-deps: deps ## what the tests need besides (etcd, unpacked below target/tools; starts no service)
	@scripts/deps test

build: deps ## build homeostat and the example with optimisations
	cargo build --release -p homeostat -p shop

up: deps ## install, build, turn up the example cell (CELL=folder) and watch it come up
	@$(MAKE) --no-print-directory build
	$(HOMEOSTAT) up $(CELL)

down: ## take the cell down; its data stays
	$(HOMEOSTAT) down

test: test-deps ## every test, the end-to-end ones included
	@# One build for all: with --all-targets cargo selects the same features as `cargo test` does, so nothing is built twice,
	@# and the programs which the end-to-end tests start (target/debug/homeostat, target/debug/shop) are there.
	cargo build --workspace --all-targets
	RUST_TEST_THREADS=$(TEST_THREADS) cargo test --workspace

sim: ## run the failover core through SEEDS=n simulated clusters
	cargo run --release -p homeostat-decider --features sim --example sim -- --seeds $(SEEDS)

bench-cell: deps ## measure a cell: outage at a failover, switchover, memory, idle CPU
	@$(MAKE) --no-print-directory build
	cargo run --release -p homeostat-bench -- cell

soak-failover: deps ## random real faults under load, FAULTS=n of them: nothing acknowledged is lost, nobody replaced in vain
	@$(MAKE) --no-print-directory build
	cargo run --release -p homeostat-bench -- soak --faults $(FAULTS)

lint: ## formatting, clippy, and (where cargo-deny is installed) licences and duplicates
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --all-features check bans licenses sources; \
	 else echo 'cargo-deny is not installed: licences and duplicates were not checked (get it with: cargo install cargo-deny --locked)'; fi

docs: ## build the book in docs/ (needs mdbook)
	mdbook build docs

clean-state: ## take the cell down and remove its databases, logs and history
	$(HOMEOSTAT) down --purge
