# The watchdog runs a server and stops it when the process that started the watchdog has ended.
# /bin/sh may be dash or bash 3.2.
#
#   sh -c "$(cat watchdog.sh)" localpg <socket directory> <path of postgres> <argument>...
#
# fd 3 is the read end of a pipe. Its only writer is the process that started the watchdog, so the
# kernel closes it when that process ends, even after SIGKILL. PR_SET_PDEATHSIG would not do: it
# exists on Linux only, and it fires when the starting thread ends, which in a Go program may be
# earlier. One line is read: how to stop.
# fd 4 is the file running, which is locked. The server inherits it.
sockets=$1
shift

"$@" 3<&- &
postmaster=$!

# A process that was stopped with SIGSTOP, as in fault tests, handles other signals after SIGCONT.
send() {
  kill -s "$1" "$postmaster"
  kill -s CONT "$postmaster"
} 2>/dev/null

# stop SIGNAL SECONDS: repeats the signal, because a server that was just started may not handle
# signals yet.
stop() {
  seconds=0
  while [ "$seconds" -lt "$2" ]; do
    kill -s 0 "$postmaster" 2>/dev/null || exit 0
    send "$1"
    sleep 1
    seconds=$((seconds + 1))
  done
}

(
  read -r command <&3
  exec 3<&-
  [ "$command" = immediate ] || stop INT 60
  stop QUIT 10
  stop KILL 10
) 4<&- &
reader=$!

# If the watchdog itself gets a signal, for example at a system shutdown, it stops the server.
# A signal interrupts wait, so wait again until the server has ended.
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
