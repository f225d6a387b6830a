#!/usr/bin/env bash
# A real S3 server for the tests: Ceph's, on loopback, all in one folder and in memory (4 GiB at most).
#
#   .ci/s3_start.sh FOLDER [PORT]
#
# Prints the variables that the tests read. .ci/s3_stop.sh FOLDER ends it.
# Needs Debian's radosgw, ceph-mon, ceph-osd and ceph-common.
set -euo pipefail
folder=${1:?a folder for its data that does not exist yet}
port=${2:-7480}
monitor_port=$((port + 9309))   # and the one after it
key=testkey
secret=$(tr -d - < /proc/sys/kernel/random/uuid)   # tests look for it where it must not be

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
mkdir "$folder"/{monitor,storage,gateway,run,log}
cluster=$(cat /proc/sys/kernel/random/uuid)
configuration=$folder/ceph.conf
keyring=$folder/keyring

cat > "$configuration" <<EOF
[global]
fsid = $cluster
keyring = $keyring
run dir = $folder/run
admin socket = $folder/run/\$name.asok
log file = $folder/log/\$name.log
public addr = 127.0.0.1
cluster addr = 127.0.0.1
mon initial members = a
mon host = [v2:127.0.0.1:$((monitor_port + 1)),v1:127.0.0.1:$monitor_port]
mon data = $folder/monitor
mon data avail warn = 2
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 2000
osd data = $folder/storage
osd objectstore = memstore
memstore device bytes = 4294967296
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
rgw dynamic resharding = false
rgw thread pool size = 16
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 5
EOF

# rgw gc: what is deleted gives its memory back in seconds; by default in hours, and a full store hangs.

log() { echo "s3: $*" >&2; }

# In a group of their own: Ctrl-C in the terminal is for the tests.
daemon() { setsid "$@" -c "$configuration" > /dev/null 2>> "$folder/log/start.log"; }

{
  ceph-authtool "$keyring" --create-keyring --gen-key -n mon. --cap mon 'allow *'
  for name in client.admin osd.0; do
    ceph-authtool "$keyring" --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  done
  monmaptool --create --fsid "$cluster" \
    --addv a "[v2:127.0.0.1:$((monitor_port + 1)),v1:127.0.0.1:$monitor_port]" "$folder/monitors"
  ceph-mon -c "$configuration" --mkfs -i a --monmap "$folder/monitors" --keyring "$keyring"
} > "$folder/log/start.log" 2>&1
daemon ceph-mon -i a --pid-file "$folder/run/monitor.pid"
log "monitor is up"
timeout 60 ceph -c "$configuration" osd create >> "$folder/log/start.log" 2>&1
# It makes its store, and may fail on asking for more than there is in a container.
ceph-osd -c "$configuration" -i 0 --mkfs --osd-uuid "$(cat /proc/sys/kernel/random/uuid)" >> "$folder/log/start.log" 2>&1 || true
daemon ceph-osd -i 0 --pid-file "$folder/run/storage.pid"
log "storage is up"
timeout 120 radosgw-admin -c "$configuration" -k "$keyring" user create --uid test --display-name test \
  --access-key "$key" --secret-key "$secret" >> "$folder/log/start.log" 2>&1
daemon radosgw -n client.admin -k "$keyring" --rgw-data "$folder/gateway" \
  --rgw-frontends "beast endpoint=127.0.0.1:$port" --pid-file "$folder/run/gateway.pid"
for _ in $(seq 120); do
  if curl -fs "http://127.0.0.1:$port" > /dev/null && kill -0 "$(cat "$folder/run/gateway.pid")" 2> /dev/null; then
    log "answers on http://127.0.0.1:$port"
    echo "export EQREG_TEST_S3_ENDPOINT=http://127.0.0.1:$port EQREG_TEST_S3_KEY=$key EQREG_TEST_S3_SECRET=$secret"
    exit 0
  fi
  sleep 0.5
done
log "does not answer; see $folder/log"
exit 1
