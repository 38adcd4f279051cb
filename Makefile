# What people type. Each target is a script in scripts/, which says what it does.
#
# PG_CONFIG=...       install, build: the server that you have (default: the pg_config in your PATH)
# TEST_PG_CONFIG=...  demo, check, bench: a server to use instead of the private one; the extension goes into it
# PG=17               demo, check, dev: this major instead of 15, fetched if it is missing; 15 to 18
#                     deb, dist, check-packages: this major alone
# NO_ROOT=1           check-packages: without a Debian of its own
# STAGE="..."         check: only these stages (lint policy regress isolation server clients)
# TESTS="..."         check-server: only these programs of tests/server
# CLIENTS="..."       check-clients: only these (psql psycopg asyncpg node-postgres pgjdbc tokio-postgres)
# FEATURES=...        check: cargo features on top, such as test-entries
# ACCEPT=1            check-regress, check-isolation: take what comes out as what is expected
# CORE_SOURCE=...     check-core: the source tree of the server, instead of fetching it
# SQLSMITH_QUERIES=N  check-server: more random queries than 500
# WHO="root user"     check-fresh: only as root, or as a user
# WHAT="demo check"   check-fresh: only the one command
# ROLE=...            psql: the role to connect as

PG_CONFIG ?= pg_config
ROLE ?= helpdesk_anna
export PG DEB_REVISION DEBFULLNAME DEBEMAIL TEST_PG_CONFIG STAGE TESTS
export CLIENTS FEATURES PROFILE ACCEPT DESTDIR CORE_SOURCE SQLSMITH_QUERIES WHO WHAT NO_ROOT

SHELL = /bin/bash

.PHONY: help setup demo psql check check-all check-lint check-policy check-regress check-isolation check-server \
	check-clients check-core check-packages check-fresh bench dev build all deb dist install uninstall clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: ## see it work: a throwaway server, an HR database and a story (sets up what is missing)
	@scripts/demo.sh

psql: ## the demo's database to yourself, as helpdesk_anna or ROLE=name; gone when you leave
	@scripts/demo.sh --psql "$(ROLE)"

check: ## every test and lint on 15, on 16 to 18 what may differ; the last line counts; PG=17: all of it on 17
	@scripts/check-majors.sh

check-all: ## every test on each major
	@scripts/check-majors.sh --all

check-lint: ## rustfmt, clippy, documentation
	@STAGE=lint scripts/check.sh

check-policy: ## the pure core's tests, without a server
	@STAGE=policy scripts/check.sh

check-regress: ## golden files: tests/pg_regress
	@STAGE=regress scripts/check.sh

check-isolation: ## two sessions at once: tests/isolation
	@STAGE=isolation scripts/check.sh

check-server: ## tests that start, stop and kill servers: tests/server
	@STAGE=server scripts/check.sh

check-clients: ## real clients, directly and by pgbouncer, by every door: tests/clients
	@STAGE=clients scripts/check.sh

check-core: ## Postgres' own regression suite with the extension preloaded; not part of check
	@scripts/check-core.sh

check-packages: ## builds, installs (by apt into a Debian of its own, as root) and uses the packages; not part of check
	@scripts/check-packages.sh

check-fresh: ## README's commands in a fresh Debian, as root and as a user; wants root, takes long; not part of check
	@scripts/check-fresh.sh

bench: ## what it costs
	@scripts/setup.sh
	@bench/run.sh

setup: ## what is needed to build, and a private Postgres in .tools
	@scripts/setup.sh

dev: ## build without optimisation and install into the private Postgres
	@scripts/setup.sh
	@. scripts/lib.sh && scripts/install.sh --dev --features "$(FEATURES)" --pg-config "$$(test_pg_config)"

build: ## build for PG_CONFIG=/path/to/pg_config, in release mode
	@scripts/setup.sh build-tools
	@scripts/install.sh --build-only --pg-config "$(PG_CONFIG)"

install: ## build and install into the server of PG_CONFIG=/path/to/pg_config
	@scripts/setup.sh build-tools
	@scripts/install.sh --pg-config "$(PG_CONFIG)"

# What PGXN's client asks for.
all: build

deb: ## a Debian package for each major, or for PG=17 alone, into dist/
	@scripts/package.sh deb

dist: ## the sources as PGXN wants them, and an archive of built files for each major, into dist/
	@scripts/package.sh dist

uninstall: ## take the files out of that server again
	@scripts/install.sh --uninstall --pg-config "$(PG_CONFIG)"

clean: ## remove what was built and fetched
	cargo clean
	rm -rf dist .tools/* .tools
