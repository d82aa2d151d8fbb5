#!/usr/bin/env bash
# Starts, stops and watches the service: bash scripts/service.sh start|stop|status|restart
#
# Variables, by open-audio-opd's names: MODEL (required to start), HOST (127.0.0.1), PORT (8025), GPU (none: arkfast chooses), PYTHON_BIN,
# MAX_NUM_SEQS (as many as memory holds), MAX_NEW_TOKENS (256), RUN_DIR (runs/vllm), PID_FILE, LOG_FILE. GPUS="0 1 2 3" runs one service a
# GPU on ports from PORT on. START_SECONDS (600) is how long readiness is waited for, STOP_SECONDS (45) how long an end. SERVE_FLAGS holds
# further flags of arkfast serve. GPU_MEMORY_UTILIZATION, MAX_NUM_BATCHED_TOKENS and MAX_MODEL_LEN have no effect: arkfast takes what it needs.
#
# LOG_FILE is the log, which the service rotates at 50 MB. What is printed besides, such as why a start failed, goes to LOG_FILE.console,
# which each start begins anew.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
HOST="${HOST:-127.0.0.1}" PORT="${PORT:-8025}" RUN_DIR="${RUN_DIR:-$root/runs/vllm}"
START_SECONDS="${START_SECONDS:-600}" STOP_SECONDS="${STOP_SECONDS:-45}"
if [ -z "${PYTHON_BIN:-}" ]; then
  PYTHON_BIN="$root/.venv/bin/python"
  [ -x "$PYTHON_BIN" ] || PYTHON_BIN=python3
fi
read -ra gpus <<<"${GPUS:-${GPU:-}}"
[ "${#gpus[@]}" -gt 0 ] || gpus=("")
for name in GPU_MEMORY_UTILIZATION MAX_NUM_BATCHED_TOKENS MAX_MODEL_LEN; do
  [ -z "${!name:-}" ] || echo "service: $name has no effect: arkfast takes what it needs" >&2
done

# Of the service at place $1: its port and its files. PID_FILE and LOG_FILE are those of a single service.
place() {
  port=$((PORT + $1)) gpu="${gpus[$1]}"
  pid_file="$RUN_DIR/ark_asr_vllm_$port.pid" log_file="$RUN_DIR/ark_asr_vllm_$port.log"
  if [ "${#gpus[@]}" -eq 1 ]; then
    pid_file="${PID_FILE:-$pid_file}" log_file="${LOG_FILE:-$log_file}"
  fi
  case "$pid_file" in /*) ;; *) pid_file="$PWD/$pid_file" ;; esac
}

# Processes of the session that the service began: its own and those that it started, zombies left out. The number in the file may be another
# program's by now, so each must also have the mark that start_one put into the service's environment.
members() {
  [ -f "$pid_file" ] || return 0
  local session pid
  session="$(head -n 1 "$pid_file")"
  [[ "$session" =~ ^[0-9]+$ ]] || return 0
  for pid in $(ps -eo sid=,pid=,stat= | awk -v session="$session" '$1 == session && $3 !~ /^Z/ {print $2}'); do
    if grep -qzxF "ARKFAST_SERVICE=$pid_file" "/proc/$pid/environ" 2>/dev/null; then echo "$pid"; fi
  done
}

# Whether the address answers: $1 is "taken" for anything that listens there, "ready" for a service whose engine decodes. No proxy is asked,
# whatever the variables of proxies say.
is() {
  "$PYTHON_BIN" - "$1" "$HOST" "$port" <<'PY'
import socket, sys, urllib.request
what, host, port = sys.argv[1:]
host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
try:
    socket.create_connection((host, int(port)), timeout=15).close()
    if what == "ready":
        name = f"[{host}]" if ":" in host else host
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{name}:{port}/ready", timeout=15).read()
except OSError:
    sys.exit(1)
PY
}

start_one() {
  if [ -n "$(members)" ]; then
    echo "service: runs already on port $port (pid $(head -n 1 "$pid_file"))"
    return 0
  fi
  if is taken; then
    echo "service: another program listens on port $port already; stop it, or give another PORT" >&2
    return 1
  fi
  mkdir -p "$(dirname "$pid_file")" "$(dirname "$log_file")"
  [ -z "$gpu" ] || export CUDA_VISIBLE_DEVICES="$gpu"
  local flags=(--host "$HOST" --port "$port" --max_new_tokens "${MAX_NEW_TOKENS:-256}" --log_file "$log_file" --log_to_console False)
  [ -z "${MAX_NUM_SEQS:-}" ] || flags+=(--slots "$MAX_NUM_SEQS")
  local more
  read -ra more <<<"${SERVE_FLAGS:-}"
  # A session of its own, so that stopping it reaches every process of it and nothing else. Paths are meant from where the script was called.
  ARKFAST_SERVICE="$pid_file" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
    setsid "$PYTHON_BIN" -m arkfast serve "$MODEL" "${flags[@]}" ${more[@]+"${more[@]}"} </dev/null >"$log_file.console" 2>&1 &
  echo $! >"$pid_file"
  while [ -z "$(members)" ] && kill -0 $! 2>/dev/null; do sleep 0.05; done # until it has its session
}

wait_ready() {
  local until=$((SECONDS + START_SECONDS))
  while ! is ready; do
    if [ -z "$(members)" ]; then
      echo "service: ended before it was ready on port $port; what it said, in $log_file.console, ends in:" >&2
      tail -n 5 "$log_file.console" >&2
      rm -f "$pid_file"
      return 1
    fi
    if [ "$SECONDS" -ge "$until" ]; then
      echo "service: not ready on port $port after $START_SECONDS s; see $log_file" >&2
      return 1
    fi
    sleep 0.5
  done
  echo "service: ready on port $port (pid $(head -n 1 "$pid_file"), log $log_file)"
}

stop_one() {
  if [ -z "$(members)" ]; then
    echo "service: does not run on port $port"
    rm -f "$pid_file"
    return 0
  fi
  local session until
  session="$(head -n 1 "$pid_file")"
  kill -TERM "$session" 2>/dev/null || true # it ends its own processes when what runs is finished
  until=$((SECONDS + STOP_SECONDS))
  while [ -n "$(members)" ] && [ "$SECONDS" -lt "$until" ]; do
    kill -0 "$session" 2>/dev/null || members | xargs -r kill -TERM 2>/dev/null || true
    sleep 0.2
  done
  members | xargs -r kill -KILL 2>/dev/null || true
  until=$((SECONDS + 10))
  while [ -n "$(members)" ]; do
    if [ "$SECONDS" -ge "$until" ]; then
      echo "service: processes $(members | tr '\n' ' ')on port $port do not end; $pid_file stays" >&2
      return 1
    fi
    sleep 0.2
  done
  rm -f "$pid_file"
  echo "service: stopped on port $port"
}

status_one() {
  if [ -z "$(members)" ]; then
    echo "service: does not run on port $port"
    return 3
  fi
  if is ready; then
    echo "service: ready on port $port (pid $(head -n 1 "$pid_file"), log $log_file)"
  else
    echo "service: runs on port $port and is not ready; see $log_file"
    return 1
  fi
}

# What $1 does, for each service; the code of the last one that failed.
each() {
  local code=0 number
  for number in "${!gpus[@]}"; do
    place "$number"
    "$1" || code=$?
  done
  return "$code"
}

case "${1:-}" in
start | restart)
  : "${MODEL:?give the checkpoint: MODEL=AutoArk-AI/ARK-ASR-0.6B bash scripts/service.sh $1}"
  [ "$1" = start ] || each stop_one
  each start_one
  each wait_ready
  ;;
stop) each stop_one ;;
status) each status_one ;;
*)
  echo "usage: bash scripts/service.sh start|stop|status|restart" >&2
  exit 2
  ;;
esac
