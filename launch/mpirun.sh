#!/usr/bin/env bash
# An experiment on NUM_RANKS processes started by Open MPI; they find one another through mpi4py.
# Environment: MPIRUN_ARGS for more hosts, e.g. MPIRUN_ARGS="--hostfile hosts -x PATH",
# OMP_NUM_THREADS (default 1).
# Signals to this script: see launch/stoppable.sh. Start it again to go on where it stopped.
set -euo pipefail
if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/mpirun.sh EXPERIMENT.toml NUM_RANKS [--set section.key=value ...]" >&2
    exit 2
fi
experiment=$1 ranks=$2 root=$(cd "$(dirname "$0")/.." && pwd)
shift 2
. "$root/launch/stoppable.sh"
[[ -n ${VIRTUAL_ENV:-} || ! -d $root/.venv/bin ]] || PATH=$root/.venv/bin:$PATH

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if ((EUID == 0)); then # containers: Open MPI refuses root unless told twice
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Unbound, or the helper threads of a rank share its one core; more ranks than cores are allowed.
read -ra more <<< "${MPIRUN_ARGS:-}"
run_stoppable mpirun -np "$ranks" --bind-to none --map-by :OVERSUBSCRIBE -x OMP_NUM_THREADS \
    "${more[@]}" "$root/launch/rank.sh" run "$experiment" "$@"
