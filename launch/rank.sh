#!/usr/bin/env bash
# One rank of a job, for launchers that pass signals on: deaf to SIGUSR1 until autoscale takes it for
# the request to save and stop.
trap '' USR1
exec python -m autoscale "$@"
