#!/usr/bin/env bash
# Trains on all hosts of a hostfile: checks them, starts torchrun on each by ssh, gathers their logs, and stops all when one fails.
#
#   cp configs/hostfile.example hosts   # and write your hosts into it
#   HOSTFILE=hosts STUDENT_MODEL=… TEACHER_MODEL=… TRAIN_DATA=… bash scripts/launch_hostfile.sh [flags of scripts/train.py]
#
# Settings are environment variables, listed in docs/training.md; what is not set is the trainer's default. Flags given as arguments win.
# Exit codes: 0 trained; 1 a host failed; 2 wrong input, or a host that cannot take part (nothing was started); 130, 143 interrupted.
set -euo pipefail

ROOT="${ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"

fail() {
  echo "launch_hostfile: error: $*" >&2
  exit 2
}

[ -n "${HOSTFILE:-}" ] || fail "set HOSTFILE to a file with one host a line: NAME [slots=GPUS]; configs/hostfile.example is one"
[ -n "${STUDENT_MODEL:-}" ] || fail "set STUDENT_MODEL to the checkpoint to train, a folder or a Hugging Face repository"
[ -n "${TRAIN_DATA:-}" ] || fail "set TRAIN_DATA to the JSONL manifest"
if [ -z "${PY:-}" ]; then
  PY="$ROOT/.venv/bin/python"
  [ -x "$PY" ] || PY=python3
fi
RUN_ID="${RUN_ID:-arkfast_hostfile_$(date +%Y%m%d_%H%M%S)}"
RUN_DIR="${RUN_DIR:-$ROOT/runs/$RUN_ID}"
case "$RUN_DIR" in /*) ;; *) RUN_DIR="$PWD/$RUN_DIR" ;; esac
OUTPUT_DIR="${OUTPUT_DIR:-$RUN_DIR/train}"
[ "${OUTPUT_DIR%/}" != "${RUN_DIR%/}" ] || fail "OUTPUT_DIR is RUN_DIR, where the launcher writes its own logs; leave it unset for RUN_DIR/train"
MASTER_PORT="${MASTER_PORT:-29503}"
MAX_RESTARTS="${MAX_RESTARTS:-0}"
STOP_GRACE="${STOP_GRACE:-120}"

# The launcher's own defaults, where they differ from the command line's.
PER_DEVICE_TRAIN_BATCH_SIZE="${PER_DEVICE_TRAIN_BATCH_SIZE:-40}"
LEARNING_RATE="${LEARNING_RATE:-1e-4}"
LR_SCHEDULER_TYPE="${LR_SCHEDULER_TYPE:-cosine}"
WARMUP_STEPS="${WARMUP_STEPS:-1000}"
ASR_OPD_MAX_NEW_TOKENS="${ASR_OPD_MAX_NEW_TOKENS:-64}"
SAVE_FREQ="${SAVE_FREQ:-1000}"
if [ "$MAX_RESTARTS" != 0 ]; then RESUME_FROM_CHECKPOINT="${RESUME_FROM_CHECKPOINT:-auto}"; fi
TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-true}"
NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"

# Each is the trainer's flag of the same name in lower case.
trainer_variables=(
  STUDENT_MODEL TEACHER_MODEL TEACHER_BACKEND QWEN3_ASR_CODE_PATH TEACHER_VLLM_GPU_MEMORY_UTILIZATION TRAIN_DATA EVAL_DATA OUTPUT_DIR
  PER_DEVICE_TRAIN_BATCH_SIZE DATALOADER_NUM_WORKERS DATALOADER_PREFETCH_FACTOR DATALOADER_PERSISTENT_WORKERS
  DATALOADER_MULTIPROCESSING_CONTEXT TRAIN_MAX_SAMPLES SHUFFLE_TRAIN MAX_STEPS TOTAL_EPOCHS LEARNING_RATE LR_SCHEDULER_TYPE WARMUP_STEPS
  MIN_LR_RATIO WEIGHT_DECAY GRAD_CLIP CALIBRATE_ONLY CALIBRATION_BATCHES OPD_LOSS_WEIGHT OPD_EOS_LOSS_WEIGHT
  OPD_APPEND_TEACHER_EOS_FOR_STOPPED_ROLLOUTS ASR_TERMINAL_LOSS_WEIGHT OPD_TOP_K OPD_TEMPERATURE OPD_STUDENT_SCORE_MODE
  ASR_OPD_MAX_NEW_TOKENS DEBUG_GENERATION_STEPS DEBUG_OPD_STEPS ASR_BLOCK_TOKEN_ID_FROM MAX_AUDIO_SECONDS SAVE_FREQ MAX_CKPT_TO_KEEP
  RESUME_FROM_CHECKPOINT MODEL_DTYPE STUDENT_ATTN_IMPLEMENTATION TEACHER_ATTN_IMPLEMENTATION
)
# Each is set on the hosts when it is set here; FORWARD names further ones.
read -ra forwarded <<<"CUDA_VISIBLE_DEVICES TOKENIZERS_PARALLELISM NCCL_DEBUG NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME NCCL_SHM_DISABLE \
TORCH_NCCL_BLOCKING_WAIT NCCL_TIMEOUT PYTORCH_CUDA_ALLOC_CONF HF_DATASETS_CACHE HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE HF_ENDPOINT OMP_NUM_THREADS ${FORWARD:-}"

flags=()
for name in "${trainer_variables[@]}"; do
  if [ -n "${!name:-}" ]; then flags+=("--${name,,}" "${!name}"); fi
done
flags+=("$@")

# torchrun reads the second since a version after 2.11; on_host.py tells where it does not. Without the last, processes that are started
# anew read in the store what those before them left there, and wait for the dead.
environment=("PYTHONUNBUFFERED=1" "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$STOP_GRACE" "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
for name in "${forwarded[@]}"; do
  if [ -n "${!name:-}" ]; then environment+=("$name=${!name}"); fi
done

[ -r "$HOSTFILE" ] || fail "HOSTFILE $HOSTFILE: cannot be read"
hosts=() slots=() line_number=0
while IFS= read -r line || [ -n "$line" ]; do
  line_number=$((line_number + 1))
  line="${line%%#*}"
  read -ra words <<<"${line//$'\r'/}"
  [ "${#words[@]}" -gt 0 ] || continue
  count="${NPROC_PER_NODE:-8}"
  for word in "${words[@]:1}"; do
    case "$word" in
      slots=*) count="${NPROC_PER_NODE:-${word#slots=}}" ;;
      *) fail "$HOSTFILE:$line_number: '$word' is not understood; write NAME [slots=GPUS]" ;;
    esac
  done
  [[ "$count" =~ ^[1-9][0-9]*$ ]] || fail "$HOSTFILE:$line_number: slots '$count' is not a number above 0"
  for host in "${hosts[@]}"; do
    [ "$host" != "${words[0]}" ] || fail "$HOSTFILE:$line_number: '$host' stands there twice; give its GPUs as slots of one line"
  done
  hosts+=("${words[0]}") slots+=("$count")
done <"$HOSTFILE"
[ "${#hosts[@]}" -gt 0 ] || fail "HOSTFILE $HOSTFILE: names no host"
NNODES="${NNODES:-${#hosts[@]}}"
[ "$NNODES" = "${#hosts[@]}" ] || fail "NNODES is $NNODES, but $HOSTFILE names ${#hosts[@]} hosts"

address() { printf '%s' "${1##*@}"; } # the host of user@host
MASTER_ADDR="${MASTER_ADDR:-$(address "${hosts[0]}")}"
master=0 # the host that holds the rendezvous
for rank in "${!hosts[@]}"; do
  if [ "$(address "${hosts[$rank]}")" = "$MASTER_ADDR" ]; then master="$rank"; fi
done

# Words as one line for whatever shell the host's user has: in single quotes, where all of them read every character as it is.
quoted() {
  local word line=""
  for word in "$@"; do line+=" '${word//\'/\'\\\'\'}'"; done
  printf '%s' "${line# }"
}

on_host() { # host, words…
  local host="$1"
  shift
  exec ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=30 -o ServerAliveCountMax=4 "$host" \
    "cd $(quoted "$ROOT") && exec $(quoted env "${environment[@]}" "$@")"
}

gpus_needed=1
for ((i = 0; i < ${#flags[@]}; i++)); do
  case "${flags[$i]} ${flags[$((i + 1))]:-}" in --device\ cpu | --device=cpu\ *) gpus_needed=0 ;; esac
done

mkdir -p "$RUN_DIR"
LOG="$RUN_DIR/launch.log"
say() { printf '[%(%F %T)T] %s\n' -1 "$*" | tee -a "$LOG"; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

say "run $RUN_ID: ${#hosts[@]} hosts (${hosts[*]}), rendezvous at $MASTER_ADDR:$MASTER_PORT, logs in $RUN_DIR"
say "trainer: $(quoted scripts/train.py "${flags[@]}")"

# Checks on all hosts at once: every fault is named, and nothing is started unless all are sound.
checks=()
for rank in "${!hosts[@]}"; do
  words=("$PY" scripts/on_host.py check --gpus "$((slots[rank] * gpus_needed))" --grace "$STOP_GRACE")
  if [ "$rank" = "$master" ]; then words+=(--port "$MASTER_PORT"); fi
  words+=(-- "${flags[@]}")
  on_host "${hosts[$rank]}" "${words[@]}" </dev/null >"$work/check_$rank" 2>"$work/check_$rank.error" &
  checks+=("$!")
done
faults=0 sound="" reasons=() faulty=()
for rank in "${!hosts[@]}"; do
  host="${hosts[$rank]}" code=0
  wait "${checks[$rank]}" || code=$?
  reason="$(grep -v '^$' "$work/check_$rank.error" | tail -n 1 || true)"
  if [ "$code" = 255 ]; then
    reason="ssh cannot reach it (${reason:-no message}); try: ssh -o BatchMode=yes $host true"
  elif [ "$code" != 0 ]; then
    reason="cannot take part (exit $code): ${reason:-no message}"
  elif [ -n "$sound" ] && ! cmp -s "$work/check_$sound" "$work/check_$rank"; then
    reason="has $(cat "$work/check_$rank"), but ${hosts[$sound]} has $(cat "$work/check_$sound"); bring both to one checkout and environment"
  else
    sound="${sound:-$rank}"
    continue
  fi
  reasons+=("$reason")
  faults=$((faults + 1))
  faulty+=("$host")
done
for i in "${!reasons[@]}"; do # one reason of several hosts is said once
  [ -n "${reasons[$i]}" ] || continue
  named="host ${faulty[$i]}" reason="${reasons[$i]}"
  for ((j = i + 1; j < ${#reasons[@]}; j++)); do
    if [ "${reasons[$j]}" = "$reason" ]; then
      named+=", host ${faulty[$j]}" reasons[$j]=""
    fi
  done
  say "$named: $reason"
done
[ "$faults" = 0 ] || fail "$faults of ${#hosts[@]} hosts cannot take part; nothing was started"
say "checked: $(cat "$work/check_$sound")"
note="$(grep '^on_host: note: ' "$work/check_$sound.error" || true)" # the hosts are alike in what it speaks of
if [ -n "$note" ]; then say "${note#on_host: }"; fi

# Every ssh reads this pipe, which this process alone holds open: closing it, or dying, ends the command on every host.
mkfifo "$work/alive"
exec 8<>"$work/alive"
pids=() interrupted=0

# A host's log without what torchrun adds behind its processes' own last words: its report of which of them failed, and its traceback.
cause() { # log
  local lines
  lines="$(awk '/^E[0-9]+ .*torch\/distributed\/elastic\/.* failed \(exitcode/ { exit } !/^[EWI][0-9]+ .*torch\/distributed\// { print }' "$1")"
  if [ -n "$lines" ]; then printf '%s\n' "$lines"; else cat "$1"; fi
}

stop_all() { # why
  say "$1; stopping all hosts (up to $STOP_GRACE s for a last checkpoint)"
  exec 8>&-
}
interrupt() { # exit code, why
  if [ "$interrupted" != 0 ]; then
    kill "${pids[@]}" 2>/dev/null || true
    return 0
  fi
  interrupted="$1"
  stop_all "$2"
}
trap 'interrupt 130 "interrupted"' INT
trap 'interrupt 143 "terminated"' TERM
trap 'interrupt 129 "hung up"' HUP

logs=()
for rank in "${!hosts[@]}"; do
  logs+=("$RUN_DIR/node_${rank}_${hosts[$rank]//[^A-Za-z0-9-]/_}.out")
  is_host=0
  if [ "$rank" = "$master" ]; then is_host=1; fi
  words=(
    "$PY" scripts/on_host.py run --grace "$((STOP_GRACE + 15))" --
    "$PY" -m torch.distributed.run --nnodes="$NNODES" --nproc_per_node="${slots[$rank]}" --max_restarts="$MAX_RESTARTS"
    --rdzv_backend=c10d --rdzv_id="$RUN_ID" --rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv_conf=is_host="$is_host"
    --local_addr="$(address "${hosts[$rank]}")" scripts/train.py "${flags[@]}"
  )
  say "start host ${hosts[$rank]}: ${slots[$rank]} processes, log ${logs[$rank]}"
  (
    trap '' INT # the launcher decides what Ctrl-C means
    on_host "${hosts[$rank]}" "${words[@]}" <"$work/alive" >>"${logs[$rank]}" 2>&1 &
    trap 'kill "$!" 2>/dev/null' TERM
    code=0
    wait "$!" || code=$?
    echo "$code" >"$work/status_$rank.new"
    mv "$work/status_$rank.new" "$work/status_$rank"
  ) 8>&- &
  pids+=("$!")
  echo "$!" >"$RUN_DIR/ssh_node_$rank.pid"
done

failed=0
running=("${!hosts[@]}")
while [ "${#running[@]}" -gt 0 ]; do
  woken=0
  wait -n || woken=$? # a host ended, or a trap ran
  still=()
  for rank in "${running[@]}"; do
    if [ ! -e "$work/status_$rank" ] && [ "$woken" != 127 ]; then
      still+=("$rank")
      continue
    fi
    code="$(cat "$work/status_$rank" 2>/dev/null || echo "lost")"
    say "host ${hosts[$rank]}: ended with $code"
    if [ "$code" != 0 ] && [ "$failed$interrupted" = 00 ]; then
      failed=1
      stop_all "host ${hosts[$rank]} failed"
      echo "--- why, by the end of ${logs[$rank]}" >&2
      cause "${logs[$rank]}" | tail -n 20 >&2 || true
    fi
  done
  running=("${still[@]}")
done
status="$failed"
if [ "$interrupted" != 0 ]; then status="$interrupted"; fi
say "finished with status $status"
exit "$status"
