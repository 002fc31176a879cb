# Ends the processes of a test whose own process is gone, and what else it left. Reads "agent PID", "gone PID", "data DIR", "table NAME",
# "group DIR" and "keep" until the end of its input, which comes when the test process ends in whatever way; then ends what was named and is left.
trap '' INT TERM HUP
agents=''
data=''
keep=''
tables=''
groups=''
while read -r word value; do
    case $word in
    agent) agents="$agents $value" ;;
    gone) agents=$(for pid in $agents; do [ "$pid" = "$value" ] || printf ' %s' "$pid"; done) ;;
    data) data=$value ;;
    table) tables="$tables $value" ;;
    group) groups="$groups $value" ;;
    keep) keep=yes ;;
    done) exit 0 ;;
    esac
done

# The postmasters of the data directory whose working directory proves that they are ours.
postmasters() {
    for file in "$data"/node-*/pgdata/postmaster.pid; do
        [ -r "$file" ] || continue
        pid=$(head -n 1 "$file")
        folder=${file%/postmaster.pid}
        [ "$(readlink "/proc/$pid/cwd")" = "$(readlink -f "$folder")" ] && echo "$pid"
    done
}

# Waits at most $1 tenths of a second until none of the other arguments is a process.
await() {
    left=$1
    shift
    while [ "$left" -gt 0 ]; do
        alive=''
        for pid in "$@"; do kill -0 "$pid" && alive=yes; done
        [ -n "$alive" ] || return 0
        sleep 0.1
        left=$((left - 1))
    done
}

[ -n "$data" ] || exit 0
for table in $tables; do nft delete table inet "$table"; done
for pid in $agents; do
    kill -CONT "$pid"
    kill -TERM "$pid"
done
# shellcheck disable=SC2086
await 100 $agents
for pid in $agents; do kill -KILL "$pid"; done
servers=$(postmasters)
for pid in $servers; do kill -QUIT "$pid"; done
# shellcheck disable=SC2086
await 100 $servers
for pid in $servers; do kill -KILL "$pid"; done
for group in $groups; do rmdir "$group"; done
# What libfaketime shared between processes of which the first was killed.
for file in /dev/shm/faketime_shm_*; do
    pid=${file##*_}
    [ -e "/proc/$pid" ] || rm -f "$file" "/dev/shm/sem.faketime_sem_$pid"
done
while read -r _ mount _; do
    case $mount in "$data"/*) umount -l "$mount" ;; esac
done </proc/self/mounts
[ -n "$keep" ] || rm -rf "$data"
