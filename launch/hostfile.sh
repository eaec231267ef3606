#!/usr/bin/env bash
# An experiment on the hosts of a hostfile (lines "NAME slots=RANKS"), over pdsh and ssh without a
# password. All hosts see this folder, the data and the Python environment under the same paths.
# Environment: MASTER_PORT (default 29500), OMP_NUM_THREADS (default 1), DEEPSPEED_ARGS
# (e.g. "--master_addr 10.0.0.1 --ssh_port 2222", or "--launcher openmpi" to start them by mpirun).
# On hosts without GPUs export DS_ACCELERATOR=cpu; where a host's name resolves to 127.0.1.1 also
# GLOO_SOCKET_IFNAME=<interface>.
set -euo pipefail
if [[ $# -lt 2 || ! -f $2 ]]; then
    echo "usage: launch/hostfile.sh EXPERIMENT.toml HOSTFILE [--set section.key=value ...]" >&2
    exit 2
fi
experiment=$1 hostfile=$2 root=$(cd "$(dirname "$0")/.." && pwd)
shift 2
[[ -n ${VIRTUAL_ENV:-} || ! -d $root/.venv/bin ]] || PATH=$root/.venv/bin:$PATH

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The launcher carries few variables to the other hosts by itself; it reads the rest from this file.
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f "$DS_ENV_FILE"' EXIT
env | grep -E '^(PATH|OMP_NUM_THREADS|DS_ACCELERATOR|HF_HOME|HF_HUB_OFFLINE|(GLOO|NCCL)_[A-Z0-9_]+)=' > "$DS_ENV_FILE"

read -ra more <<< "${DEEPSPEED_ARGS:-}"
arguments=("$experiment" "$@")
if [[ " ${more[*]} " != *" --launcher "* ]]; then
    # pdsh hands the line to a shell on each host; the launcher itself only quotes what has a space.
    for index in "${!arguments[@]}"; do
        text=${arguments[index]}
        if [[ $text == *" "* ]]; then text=${text//[\\\$\`]/\\&}; else printf -v text %q "$text"; fi
        arguments[index]=$text
    done
    more+=(--force_multi) # one host as well
fi
if ((EUID == 0)); then # with --launcher openmpi, which refuses root unless told twice
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
deepspeed --hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}" --no_local_rank "${more[@]}" \
    --module autoscale run "${arguments[@]}"
