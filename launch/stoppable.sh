# Sourced by launch scripts, early: run_stoppable COMMAND [ARGUMENT ...]
#
# Runs a launcher so that SIGTERM, SIGUSR1, SIGHUP and Ctrl-C let the ranks save and end, with status
# 75, "start again to go on". A second Ctrl-C ends all at once. Launchers kill their ranks when they
# are told to end, so they are not told: they ignore SIGUSR1, which the ranks take for the request.
# It is repeated until all have ended, since ranks that start are deaf for a moment.
launcher='' teller='' told='' again=''
tell() {
    told=1 again=1
    if [[ -n $launcher && -z $teller ]]; then
        (while kill -USR1 -- "-$launcher"; do sleep 1; done) 2> /dev/null &
        teller=$!
    fi
}
interrupt() {
    [[ -z $told || -z $launcher ]] || kill -KILL -- "-$launcher" 2> /dev/null || true
    tell
}
trap tell TERM USR1 HUP
trap interrupt INT

run_stoppable() {
    local status
    [[ -z $told ]] || exit 75
    set -m # each in a process group of its own, which a signal from the terminal does not reach
    trap '' USR1 # the launcher inherits that
    "$@" &
    launcher=$!
    trap tell USR1
    [[ -z $told ]] || tell
    while
        again=''
        wait "$launcher" && status=0 || status=$?
        [[ -n $again ]]
    do :; done
    [[ -z $teller ]] || kill -KILL -- "-$teller" 2> /dev/null || true
    return "$status"
}
