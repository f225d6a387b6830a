#!/usr/bin/env bash
# A real Postgres server for the tests, on loopback, all in one folder.
#
#   .ci/postgres_start.sh FOLDER [PORT]
#
# Prints the variables that tests/pipeline/cluster reads. .ci/postgres_stop.sh FOLDER ends it.
# Needs Debian's postgresql. It refuses to run as root: then it runs as its package's own user, which must be able to
# enter the folder above.
set -euo pipefail
folder=${1:?a folder for its data that does not exist yet}
port=${2:-7490}
password=testsecret

programs=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
echo "$password" > "$folder/password"
as_user=()
if [ "$(id -u)" = 0 ]; then
  as_user=(setpriv --reuid=postgres --regid=postgres --clear-groups)
  chown -R postgres: "$folder"
fi
cd "$folder"

{
  "${as_user[@]}" "$programs/initdb" --pgdata "$folder/data" --username test --pwfile "$folder/password" \
    --auth scram-sha-256 --encoding UTF8 --no-sync
  # pg_ctl puts it into a session of its own: Ctrl-C in the terminal is for the tests.
  "${as_user[@]}" "$programs/pg_ctl" --pgdata "$folder/data" --log "$folder/server.log" --wait \
    --options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off" start
} > "$folder/start.log" 2>&1 || {
  echo "postgres: does not start; see $folder/start.log and server.log" >&2
  exit 1
}
echo "postgres: answers on 127.0.0.1:$port" >&2
echo "export EQREG_TEST_POSTGRES=postgresql://test@127.0.0.1:$port/postgres PGPASSWORD=$password"
