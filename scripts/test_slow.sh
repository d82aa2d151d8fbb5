#!/usr/bin/env bash
# What takes too long for every day: the C++ extension under the address and undefined-behaviour sanitizers, every command of the READMEs,
# then the tests marked slow.
# Expects the environment that scripts/setup.sh makes. Arguments go to the last two pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PATH="$PWD/.venv/bin:$PATH"
compiler="${CXX:-c++}"

# The package with a sanitized extension, beside the checkout's; the tests of log-mel features run against it.
sanitize() {
  local build=build/sanitize libraries="" library found
  for library in libasan.so libubsan.so libstdc++.so; do
    found="$("$compiler" -print-file-name="$library" 2>/dev/null || true)"
    # A compiler that lacks a library gives its name back; a runtime that it links statically cannot be preloaded.
    case "$found" in
      */*) libraries="$libraries $found" ;;
      *)
        echo "test_slow: the sanitizers are skipped: $compiler has no $library"
        return 0
        ;;
    esac
  done
  rm -rf "$build/site"
  mkdir -p "$build/site"
  cp -rL arkfast "$build/site/" # links become folders: they would lead nowhere from there
  rm -f "$build"/site/arkfast/_C.*.so
  cmake -G Ninja -S csrc -B "$build/cmake" -DARKFAST_SANITIZE=ON -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/$build/site/arkfast" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$(command -v python)" >"$build/cmake.log" || { cat "$build/cmake.log" >&2; return 1; }
  cmake --build "$build/cmake"

  # An inline function that a kernel shares with the rest could be taken from the kernel by the linker, and with it instructions that the
  # machine may lack. These objects are hardly optimised, so that every such function would stand in them.
  local shared
  shared="$(nm -C "$build"/cmake/CMakeFiles/_C.dir/kernel_*.o | grep -E ' [WVu] ' | grep -vE 'asan|ubsan|DW\.ref' || true)"
  if [ -n "$shared" ]; then
    echo "test_slow: kernels share functions with the rest of the extension:" >&2
    echo "$shared" >&2
    return 1
  fi

  # Python itself is not built for leak checks. The interpreter's own folder must not come first on its path, hence pytest and not python -m.
  local environment=(
    LD_PRELOAD="${libraries# }"
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    PYTHONPATH="$PWD/$build/site"
  )
  local loaded
  loaded="$(cd "$build" && env "${environment[@]}" python -c 'import arkfast._C; print(arkfast._C.__file__)')"
  case "$loaded" in
    "$PWD/$build/site/"*) ;;
    *)
      echo "test_slow: the tests would not run on the sanitized extension but on $loaded" >&2
      return 1
      ;;
  esac
  env "${environment[@]}" pytest -q -p no:cacheprovider tests/audio/test_log_mel.py tests/audio/test_log_mel_instruction_sets.py \
    tests/audio/test_log_mel_property.py tests/audio/test_log_mel_stream.py tests/audio/test_log_mel_threads.py
}

sanitize
bash tests/first_hour.sh

# Two processes share the slow tests; those that start services, Ray or a browser come after them, one at a time. Arguments may name tests
# of one kind alone: the other pytest then finds none (exit code 5).
failed=0 empty=0
slow() {
  local status=0
  pytest -q "$@" || status=$?
  case "$status" in
    0) ;;
    2) exit 2 ;; # interrupted
    5) empty=$((empty + 1)) ;;
    *) failed="$status" ;;
  esac
}
slow -m "slow and not alone" -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
slow -m "slow and alone" "$@"
[ "$empty" -lt 2 ] || failed=5
exit "$failed"
