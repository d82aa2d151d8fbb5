#!/usr/bin/env bash
# A newcomer's first hour: runs every command that README.md and README_zh.md show, in order, with the environment at hand. Commands are read
# out of the pages. Where they name a checkpoint, a tiny one of random weights lies in the cache under that name; the manifests that they name
# are made first, and so is what they take from the quickstart. A service that is shown runs until the page ends. Fails on an exit code other
# than 0, a traceback, a command that is not found or a file that is missing.
#
# Usage: bash tests/first_hour.sh   (arguments: pages to read in the place of the two)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ ! -d "$root/.venv/bin" ] || PATH="$root/.venv/bin:$PATH"
export PATH OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
limit=300 # seconds for one command

# Commands by their beginnings that are left out here, because continuous integration runs them anyway or a GPU does.
skip=(
  "bash scripts/setup.sh"
  "bash scripts/test.sh"
  "bash scripts/quickstart.sh"
  "bash scripts/gpu_suite.sh"
  "pip install"
)

# What a command is given besides, since its models are tiny, know nothing and run on a CPU.
besides() {
  case "$1" in
    *"arkfast train "* | *"scripts/train.py "*)
      echo "--gates off --asr_opd_max_new_tokens 8 --device cpu --num_threads 1 --dataloader_num_workers 0"
      ;;
    "arkfast prove "*) echo "--steps 2 --gates off --max_new_tokens 8 --clips 2 --max_wer_rise 1000 --device cpu" ;;
    "arkfast transcribe "* | "arkfast serve "*) echo "--max_new_tokens 8 --device cpu" ;;
    "curl "*) echo "--fail --silent --show-error" ;;
  esac
}

# Every line of the fenced blocks of commands, with lines that go on joined, and every command of three words or more within the text; each as
# LINE NUMBER, tab, COMMAND.
commands_of() {
  python - "$1" <<'PY'
import re
import sys

text = open(sys.argv[1], encoding="utf-8").read()
found = []


def line_of(place):
    return text.count("\n", 0, place) + 1


def blank(match):
    return re.sub(r"[^\n]", " ", match[0])


for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
    if block[1] in ("bash", "sh", "shell"):
        for match in re.finditer(r"(?:[^\n]*\\\n)*[^\n]*\n", block[2]):
            found.append((line_of(block.start(2) + match.start()), match[0]))
outside = re.sub(r"^```.*?^```", blank, text, flags=re.MULTILINE | re.DOTALL)
for span in re.finditer(r"`((?:arkfast|bash|python3?|torchrun|pip|source|[A-Z_]+=\S+) [^`]*)`", outside):
    if len(span[1].split()) > 2:
        found.append((line_of(span.start()), span[1]))
for number, command in sorted(found):
    command = " ".join(command.replace("\\\n", " ").split())
    command = re.sub(r"\s+# .*$", "", command)
    if command and not command.startswith("#"):
        print(f"{number}\t{command}")
PY
}

# A folder with what a newcomer would have: the checkout's files, manifests with recordings, checkpoints in the cache.
prepare() {
  local work="$1" name
  for name in scripts recipes configs examples docs benchmarks README.md README_zh.md; do ln -s "$root/$name" "$work/$name"; done
  mkdir -p "$work/.venv/bin"
  name="$(dirname "$(command -v python)")"
  [ ! -e "$name/activate" ] || ln -s "$name/activate" "$work/.venv/bin/activate"
  HF_HOME="$work/cache" python - "$work" 2>"$work/prepare.log" <<'PY' || { cat "$work/prepare.log" >&2; exit 1; }
import json
import sys
from pathlib import Path

from huggingface_hub import constants

from arkfast.testing import synthetic_speech, tiny_checkpoint, tiny_qwen3_asr, write_wav

work = Path(sys.argv[1])


def in_cache(repository: str, number: int) -> Path:
    """The folder of a commit in the cache, which is the default branch's."""
    commit = f"{number:040x}"
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


tiny_checkpoint(in_cache("AutoArk-AI/ARK-ASR-0.6B", 1), seed=1)
tiny_checkpoint(in_cache("AutoArk-AI/ARK-ASR-3B", 2), seed=2)
tiny_qwen3_asr(in_cache("Qwen/Qwen3-ASR-1.7B", 3), seed=3)
tiny_checkpoint(work / "runs/quickstart/opd/last", seed=4)
for name in ("dev/dev-000000", "test/test-000001"):
    (work / f"runs/quickstart/corpus/audio/{name}.wav").parent.mkdir(parents=True)
    write_wav(work / f"runs/quickstart/corpus/audio/{name}.wav", synthetic_speech(1.0, seed=5))
texts = ["one two", "two three four", "five", "six seven"]
for name, count in (("train", 6), ("dev", 3), ("test", 4)):
    rows = []
    for i in range(count):
        write_wav(work / f"{name}{i}.wav", synthetic_speech(0.6 + 0.1 * i, seed=i))
        rows.append({"audio": f"{name}{i}.wav", "text": texts[i % len(texts)], "id": f"{name}{i}", "language": "en"})
    (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
PY
}

is_skipped() {
  local beginning
  for beginning in "${skip[@]}"; do
    case "$1" in "$beginning" | "$beginning "*) return 0 ;; esac
  done
  return 1
}

# Begins a service in a process group of its own and waits until it is ready; its code where it is not.
service=""
begin() {
  : >"$work/served"
  set -m
  (cd "$work" && HF_HOME="$work/cache" exec bash -c "$1") </dev/null >"$work/served" 2>&1 &
  service=$!
  set +m
  local until=$((SECONDS + limit)) code=0
  until grep -q " is ready at " "$work/served"; do
    if ! kill -0 "$service" 2>/dev/null; then
      wait "$service" && code=1 || code=$?
      break
    fi
    [ "$SECONDS" -lt "$until" ] || { code=124; break; }
    sleep 0.2
  done
  cp "$work/served" "$work/said"
  return "$code"
}

end() {
  [ -n "$service" ] || return 0
  kill -TERM -- "-$service" 2>/dev/null || true
  wait "$service" 2>/dev/null || true
  service=""
}

failed=0 ran=0 work=""
trap 'end; [ -z "$work" ] || rm -rf "$work"' EXIT
pages=("$@")
[ "$#" -gt 0 ] || pages=("$root/README.md" "$root/README_zh.md")
for page in "${pages[@]}"; do
  work="$(mktemp -d)"
  prepare "$work"
  commands="$(commands_of "$page")"
  [ -n "$commands" ] || { echo "first_hour: $page shows no command" >&2; exit 1; }
  while IFS=$'\t' read -r number command; do
    place="${page##*/}:$number"
    if is_skipped "$command"; then
      echo "first_hour: $place: left out: $command"
      continue
    fi
    run="${command/--nproc_per_node 8/--nproc_per_node 2} $(besides "$command")"
    echo "first_hour: $place: $run"
    ran=$((ran + 1)) code=0
    case "$command" in
      "arkfast serve "*) end; begin "$run" || code=$? ;;
      *) (cd "$work" && HF_HOME="$work/cache" timeout "$limit" bash -c "$run") </dev/null >"$work/said" 2>&1 || code=$? ;;
    esac
    reason=""
    [ "$code" = 0 ] || reason="ended with $code"
    for sign in "Traceback (most recent call last)" "command not found" "No such file or directory"; do
      if grep -qF "$sign" "$work/said"; then reason="${reason:+$reason, }said '$sign'"; fi
    done
    if [ -n "$reason" ]; then
      failed=$((failed + 1))
      echo "first_hour: FAILED: $place: $reason; the end of what it said:" >&2
      tail -n 25 "$work/said" >&2
    fi
  done <<<"$commands"
  end
  rm -rf "$work"
done
echo "first_hour: $ran commands ran, $failed failed"
[ "$failed" = 0 ]
