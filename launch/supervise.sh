#!/usr/bin/env bash
# Start a job again when it fails, at most RESTARTS times: finished runs stay finished, the others
# go on from their newest checkpoint, and launch/local.sh takes a fresh port each time. E.g.
#   launch/supervise.sh 5 launch/local.sh EXPERIMENT.toml 8
# It does not start again what would fail again (status 2: a mistake in the experiment or its data)
# nor what was told to stop (75: it saved; 130, 143: it was ended). Signals are passed on to the job.
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[0-9]+$ ]]; then
    echo "usage: launch/supervise.sh RESTARTS COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
restarts=$1 told= job= status=75
shift
set -m # the job in its own process group: a signal from the terminal reaches it once, through us
tell() { told=1 again=1; kill -"$1" "$job" 2> /dev/null || true; }
for name in INT TERM USR1 HUP; do trap "tell $name" "$name"; done
for ((attempt = 0; ; attempt++)); do
    [[ -z $told ]] || exit "$status"
    "$@" &
    job=$!
    while
        again=''
        wait "$job" && status=0 || status=$?
        [[ -n $again ]]
    do :; done
    [[ -z $told ]] || exit "$status"
    case $status in 0 | 2 | 75 | 130 | 143) exit "$status" ;; esac
    if ((attempt == restarts)); then
        echo "launch/supervise.sh: status $status, given up after $restarts restarts" >&2
        exit "$status"
    fi
    echo "launch/supervise.sh: status $status, restart $((attempt + 1)) of $restarts" >&2
done
