#!/usr/bin/env bash
# testbed.sh up DIR | down DIR - the servers that the tests run against: Postgres
# and an S3 server, on loopback, with their data under DIR. Writes DIR/env with
# the variables that the tests read. On Debian as root it installs what is
# missing; elsewhere it uses Docker compose when that is there.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
action="${1:?usage: testbed.sh up|down DIR}"
dir="${2:?usage: testbed.sh up|down DIR}"
pg_port="${MILLRACE_PG_PORT:-57415}"
s3_port="${MILLRACE_S3_PORT:-57900}"
versitygw=github.com/versity/versitygw/cmd/versitygw@v1.8.0

die() { echo "testbed: $*" >&2; exit 1; }

pg_bin() {
	local bin
	for bin in /usr/lib/postgresql/*/bin; do
		[ -x "$bin/initdb" ] && echo "$bin" && return 0
	done
	command -v initdb >/dev/null && dirname "$(command -v initdb)"
}

install_postgres() {
	pg_bin >/dev/null 2>&1 && return 0
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
		die "no Postgres here: install Postgres 14 or later (Debian: apt-get install postgresql), or run on a machine with Docker"
	apt-get update -qq
	# The package would start a server of its own.
	mkdir -p /etc/postgresql-common
	[ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
}

# as_postgres runs a command as the user that a server may run as: not root.
as_postgres() {
	if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi
}

start_postgres() {
	install_postgres
	local bin data="$dir/pg"
	bin="$(pg_bin)"
	rm -rf "$data"
	mkdir -p "$data"
	[ "$(id -u)" != 0 ] || chown postgres "$data"
	# Parents must be open to the server's user.
	local p="$dir"
	while [ "$(id -u)" = 0 ] && [ "$p" != / ]; do chmod o+x "$p"; p="$(dirname "$p")"; done
	echo secret >"$data/password"
	(cd / && as_postgres "$bin/initdb" -D "$data/db" -U postgres -A scram-sha-256 --auth-local=trust --pwfile="$data/password" -E UTF8 --locale=C.UTF-8 >"$data/initdb.log" 2>&1) || { cat "$data/initdb.log" >&2; die "initdb failed"; }
	cat >>"$data/db/postgresql.conf" <<-CONF
		listen_addresses = '127.0.0.1'
		port = $pg_port
		unix_socket_directories = '$data'
		wal_level = logical
		max_replication_slots = 32
		max_wal_senders = 32
		wal_sender_timeout = 5s
		fsync = off
		full_page_writes = off
	CONF
	(cd / && as_postgres "$bin/pg_ctl" -D "$data/db" -l "$data/log" -w -t 60 start >/dev/null) || { cat "$data/log" >&2; die "Postgres does not start"; }
}

start_s3() {
	local bin="${MILLRACE_VERSITYGW:-$(go env GOPATH)/bin/versitygw}"
	[ -x "$bin" ] || { echo "testbed: building the S3 server, once" >&2; GOBIN="$(dirname "$bin")" go install "$versitygw"; }
	rm -rf "$dir/s3"
	mkdir -p "$dir/s3/data"
	(umask 022; ROOT_ACCESS_KEY=test ROOT_SECRET_KEY=testsecret setsid nohup "$bin" --port "127.0.0.1:$s3_port" --region us-east-1 posix "$dir/s3/data" >"$dir/s3/log" 2>&1 & echo $! >"$dir/s3/pid")
	local i
	for i in $(seq 100); do
		(exec 3<>"/dev/tcp/127.0.0.1/$s3_port") 2>/dev/null && return 0
		sleep 0.1
	done
	cat "$dir/s3/log" >&2
	die "the S3 server does not start"
}

case "$action" in
up)
	mkdir -p "$dir"
	dir="$(cd "$dir" && pwd)"
	if ! pg_bin >/dev/null 2>&1 && [ "$(id -u)" != 0 ] && docker info >/dev/null 2>&1; then
		docker compose -f "$here/compose.yaml" up -d --wait
	else
		start_postgres
		start_s3
	fi
	cat >"$dir/env" <<-ENV
		export MILLRACE_TEST_POSTGRES=postgres://postgres:secret@127.0.0.1:$pg_port/postgres
		export MILLRACE_TEST_S3=http://127.0.0.1:$s3_port
		export MILLRACE_TEST_S3_ACCESS_KEY=test
		export MILLRACE_TEST_S3_SECRET_KEY=testsecret
	ENV
	;;
down)
	[ -d "$dir" ] || exit 0
	dir="$(cd "$dir" && pwd)"
	if [ -e "$dir/pg/db/postmaster.pid" ]; then
		(cd / && as_postgres "$(pg_bin)/pg_ctl" -D "$dir/pg/db" -m immediate -w stop >/dev/null) || true
	fi
	if [ -e "$dir/s3/pid" ]; then kill "$(cat "$dir/s3/pid")" 2>/dev/null || true; fi
	rm -rf "$dir/pg" "$dir/s3" "$dir/env"
	if [ ! -x /usr/bin/initdb ] && ! pg_bin >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
		docker compose -f "$here/compose.yaml" down -v
	fi
	;;
*)
	die "usage: testbed.sh up|down DIR"
	;;
esac
