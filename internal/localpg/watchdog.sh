# The watchdog: runs a server, and ends it when the process that started it is gone. /bin/sh runs it (dash, bash 3.2).
#
#   sh -c watchdog.sh localpg <socket folder> postgres <argument>…
#
# fd 3 is the read end of a pipe whose only writer is the process that started us: each line is an order, "keep" or the name
# of a signal for the server. fd 4 is the lock on the cluster, which the server inherits.
sockets=$1
shift

"$@" 3<&- &
postmaster=$!

# A stopped process (SIGSTOP, as fault tests send it) acts on a signal only when it is continued.
send() {
  kill -s "$1" "$postmaster"
  kill -s CONT "$postmaster"
} 2>/dev/null

(
  keep=
  while read -r order <&3; do
    case $order in
      keep) keep=yes ;;
      *) send "$order" ;;
    esac
  done

  # The pipe is closed: whoever held it is gone. Fast shutdown; immediate shutdown should that not end; and then the end.
  # Every second anew, because a server that has only just been started does not listen yet.
  [ -z "$keep" ] || exit 0
  for order in INT QUIT KILL; do
    seconds=0
    while [ "$seconds" -lt 20 ]; do
      kill -s 0 "$postmaster" 2>/dev/null || exit 0
      send "$order"
      sleep 1 3<&-
      seconds=$((seconds + 1))
    done
  done
) 4<&- &
reader=$!

# Told to go ourselves (a system that shuts down), we take the server along. A signal interrupts wait, so it is asked again
# until the server is no more.
trap 'send INT' HUP INT TERM
while :; do
  wait "$postmaster"
  status=$?
  kill -s 0 "$postmaster" 2>/dev/null || break
done

kill "$reader" 2>/dev/null
wait "$reader"
rm -rf -- "$sockets"
exit "$status"
