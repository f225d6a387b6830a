#!/usr/bin/env bash
# Ends what .ci/postgres_start.sh started in the same folder.
set -uo pipefail
folder=${1:?the folder given to postgres_start.sh}
[ -s "$folder/data/postmaster.pid" ] || exit 0
pid=$(head -n 1 "$folder/data/postmaster.pid")
kill -INT "$pid" 2> /dev/null   # ends its connections, too
for _ in $(seq 50); do
  kill -0 "$pid" 2> /dev/null || exit 0
  sleep 0.2
done
kill -QUIT "$pid" 2> /dev/null
exit 0
