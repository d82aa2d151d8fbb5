#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../evaluate_presets.sh" --sort cer_errors "$@"
