#!/usr/bin/env bash
# An experiment on NUM_RANKS processes of this machine, through the deepspeed launcher; `run` by
# default, or another of autoscale's commands that train.
# Environment: MASTER_PORT (default: a free one), OMP_NUM_THREADS (default 1, raise it for offload),
# CUDA_VISIBLE_DEVICES (which GPUs), DS_ACCELERATOR=cpu (leave the GPUs alone).
# Signals to this script: see launch/stoppable.sh. Start it again to go on where it stopped.
set -euo pipefail
fail() { echo "launch/local.sh: $1" >&2; exit 2; }
[[ $# -ge 2 && $2 =~ ^[1-9][0-9]*$ ]] ||
    fail "usage: launch/local.sh EXPERIMENT.toml NUM_RANKS [run|probe|train|bench] [--set section.key=value ...]"
experiment=$1 ranks=$2 root=$(cd "$(dirname "$0")/.." && pwd)
shift 2
command=run
[[ ! ${1:-} =~ ^(run|probe|train|bench)$ ]] || { command=$1 && shift; }
. "$root/launch/stoppable.sh"
[[ -n ${VIRTUAL_ENV:-} || ! -d $root/.venv/bin ]] || PATH=$root/.venv/bin:$PATH
command -v deepspeed > /dev/null || fail "no deepspeed on PATH; run 'make install'"

free_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
port=${MASTER_PORT:-$(python -c "$free_port")}
gpus=0
[[ ${DS_ACCELERATOR:-} == cpu ]] || gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
count=(--num_gpus "$ranks")
if ((gpus == 0)); then
    export DS_ACCELERATOR=cpu
    unset CUDA_VISIBLE_DEVICES
elif ((ranks > gpus)); then
    fail "$ranks ranks asked for, $gpus GPUs visible; ask for fewer or set DS_ACCELERATOR=cpu"
elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then # the launcher overrides it when given a count
    CUDA_VISIBLE_DEVICES=$(cut -d, -f"1-$ranks" <<< "$CUDA_VISIBLE_DEVICES") count=()
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

run_stoppable deepspeed --quiet --hostfile /dev/null --master_port "$port" --no_local_rank \
    "${count[@]}" --module autoscale "$command" "$experiment" "$@"
