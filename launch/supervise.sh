#!/usr/bin/env bash
# Start a job again when it fails, at most RESTARTS times: finished runs stay finished, the others
# go on from their newest checkpoint, and launch/local.sh takes a fresh port each time. E.g.
#   launch/supervise.sh 5 launch/local.sh EXPERIMENT.toml 8
# It does not start again what would fail again (status 2: a mistake in the experiment or its data)
# nor what was told to stop (130, 143: an interrupt, a termination; both are passed on).
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[0-9]+$ ]]; then
    echo "usage: launch/supervise.sh RESTARTS COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
restarts=$1 stopped=
shift
set -m # the job in its own process group: a signal from the terminal reaches it once, through us
trap 'stopped=130; kill -INT "$job" 2> /dev/null || true' INT
trap 'stopped=143; kill -TERM "$job" 2> /dev/null || true' TERM HUP
for ((attempt = 0; ; attempt++)); do
    "$@" &
    job=$! status=0
    while kill -0 "$job" 2> /dev/null; do wait "$job" && status=0 || status=$?; done
    [[ -z $stopped ]] || exit "$stopped"
    case $status in 0 | 2 | 130 | 143) exit "$status" ;; esac
    if ((attempt == restarts)); then
        echo "launch/supervise.sh: status $status, given up after $restarts restarts" >&2
        exit "$status"
    fi
    echo "launch/supervise.sh: status $status, restart $((attempt + 1)) of $restarts" >&2
done
