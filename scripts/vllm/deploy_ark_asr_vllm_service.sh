#!/usr/bin/env bash
# open-audio-opd's path of scripts/service.sh, with the same actions and variables.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../service.sh" "$@"
