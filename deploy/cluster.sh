#!/usr/bin/env bash
# A cluster on one machine, as plain processes: three NATS servers that replicate every stream, and
# three processes of the service on them. To try a cluster out; it needs Go and the ports 4221-4223,
# 6221-6223 and 8081-8083 of this machine, and uses no TLS.
#
#   deploy/cluster.sh [FOLDER]     starts it; Ctrl-C stops it. FOLDER (./credstream-cluster) keeps the
#                                  data, the keys and the logs: the same folder continues.
set -euo pipefail
umask 077
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-credstream-cluster}"
cd "${1:-credstream-cluster}"
mkdir -p bin n1 n2 n3 p1 p2 p3

echo "Building credstream and nats-server..."
(cd "$repo" && go build -o "$OLDPWD/bin/" ./cmd/credstream github.com/nats-io/nkeys/nk &&
  go build -o "$OLDPWD/bin/nats-server" github.com/nats-io/nats-server/v2)

if [ ! -e passwords ]; then
  bin/nk -gen account -pubout >issuer.keys
  bin/nk -gen curve -pubout >xkey.keys
  head -1 issuer.keys >issuer.seed
  head -1 xkey.keys >xkey.seed
  bin/credstream kms new kms.key >/dev/null
  for of in SERVICE ENDPOINTS CALLOUT SYSTEM ROUTE; do
    echo "export NATS_${of}_PASSWORD=p$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
  done >passwords
fi
# shellcheck source=/dev/null
. ./passwords
NATS_CALLOUT_ISSUER=$(tail -1 issuer.keys)
NATS_CALLOUT_XKEY=$(tail -1 xkey.keys)
export NATS_CALLOUT_ISSUER NATS_CALLOUT_XKEY

pids=()
stop() {
  trap - INT TERM EXIT
  # The service first: it finishes what it has begun.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[$i]}" 2>/dev/null || true; done
  wait
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

routes=$(for i in 1 2 3; do printf '"nats://route:%s@127.0.0.1:622%d",' "$NATS_ROUTE_PASSWORD" "$i"; done)
for i in 1 2 3; do
  NATS_NAME=n$i NATS_LISTEN="\"127.0.0.1:422$i\"" NATS_STORE="\"$PWD/n$i\"" \
    NATS_CLUSTER_LISTEN="\"127.0.0.1:622$i\"" NATS_ROUTES="[${routes%,}]" \
    bin/nats-server -c "$repo/deploy/nats/node.conf" >>"n$i.log" 2>&1 &
  pids+=($!)
done

servers=127.0.0.1:4221,127.0.0.1:4222,127.0.0.1:4223
export CREDSTREAM_NATS=nats://credstream:$NATS_SERVICE_PASSWORD@$servers
export CREDSTREAM_NATS_ENDPOINTS=nats://credstream-endpoints:$NATS_ENDPOINTS_PASSWORD@$servers
export CREDSTREAM_NATS_SYSTEM=nats://credstream-system:$NATS_SYSTEM_PASSWORD@$servers
export CREDSTREAM_NATS_CALLOUT=nats://credstream-callout:$NATS_CALLOUT_PASSWORD@$servers
export CREDSTREAM_NATS_CALLOUT_SEED=$PWD/issuer.seed CREDSTREAM_NATS_CALLOUT_XKEY=$PWD/xkey.seed
export CREDSTREAM_KMS=file://$PWD/kms.key

# ready waits until a process of the service is ready, or has ended.
ready() {
  until bin/credstream health --server "http://127.0.0.1:808$1" >/dev/null 2>&1; do
    if ! kill -0 "$2" 2>/dev/null; then
      tail -3 "p$1.log"
      exit 1
    fi
    sleep 0.5
  done
  echo "  process $1   http://127.0.0.1:808$1"
}
for i in 1 2 3; do
  started=
  for _ in $(seq 60); do # the servers need a moment to elect their leader
    bin/credstream serve --data "p$i" --http "127.0.0.1:808$i" --admin-key-file admin.key --allow-private-targets >>"p$i.log" 2>&1 &
    pid=$!
    sleep 1
    if kill -0 "$pid" 2>/dev/null; then
      started=$pid
      break
    fi
  done
  if [ -z "$started" ]; then
    tail -3 "p$i.log"
    exit 1
  fi
  pids+=("$started")
  ready "$i" "$started"
done
cat <<EOF

  server  1-3   nats://$servers
  key           $PWD/admin.key
  logs          $PWD/{n,p}{1,2,3}.log

  export CREDSTREAM_URL=http://127.0.0.1:8081 CREDSTREAM_NATS_URL=nats://$servers CREDSTREAM_KEY=\$(cat $PWD/admin.key)

Kill any one of the six processes: the others go on. Ctrl-C stops all of them.
EOF
wait
