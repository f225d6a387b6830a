#!/usr/bin/env bash
# Ends what .ci/s3_start.sh started in the same folder, by the process numbers that it left there.
set -uo pipefail
folder=${1:?the folder given to s3_start.sh}
for name in gateway storage monitor; do
  file=$folder/run/$name.pid
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2> /dev/null
  for _ in $(seq 20); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.2
  done
  kill -9 "$pid" 2> /dev/null
done
exit 0
