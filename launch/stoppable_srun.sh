# Sourced by the batch scripts: stoppable_srun [OPTION ...] COMMAND [ARGUMENT ...]
#
# Slurm warns the batch shell before the job's end (#SBATCH --signal=B:USR1@180). The warning goes on
# to the tasks, which save and end with status 75; then the job is put back into the queue, to go on
# from there. So is one that stopped by itself before its end (limits.stop_before_end_minutes). A job
# that is cancelled (SIGTERM) saves as well, if KillWait of Slurm leaves the time, and is not requeued.
stoppable_srun() {
    local step status teller='' cancelled='' again
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    trap '' USR1 # srun is not to die of it before it hands it on
    srun "$@" &
    step=$!
    tell() { # srun hands SIGUSR1 on; repeated, since tasks that start are deaf for a moment
        again=1
        [[ -n $teller ]] && return
        (trap '' USR1 && while kill -USR1 "$step"; do sleep 2; done) 2> /dev/null &
        teller=$!
    }
    trap tell USR1
    trap 'again=1 cancelled=1' TERM # srun and its tasks get it from Slurm themselves
    while
        again=''
        wait "$step" && status=0 || status=$?
        [[ -n $again ]]
    do :; done
    [[ -z $teller ]] || kill "$teller" 2> /dev/null || true
    if ((status == 75)) && [[ -z $cancelled ]]; then
        if ((SECONDS < 10)); then # as when --time is shorter than the warning: it would go on for ever
            echo "not requeued: it had to stop within 10 s of its start" >&2
        else
            scontrol requeue "${job:-$SLURM_JOB_ID}"
        fi
    fi
    return "$status"
}
