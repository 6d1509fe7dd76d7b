# The watchdog runs a server and stops it when the process that started the watchdog has ended.
# /bin/sh may be dash or bash 3.2.
#
#   sh -c "$(cat watchdog.sh)" localpg <socket directory> <path of postgres> <argument>...
#
# fd 3 is the read end of a pipe. Its only writer is the process that started the watchdog. Each
# line is a command: "keep", or the name of a signal for the server.
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

(
  keep=
  while read -r command <&3; do
    case $command in
      keep) keep=yes ;;
      *) send "$command" ;;
    esac
  done

  # The pipe is closed: its writer has ended. Shut down in fast mode, then in immediate mode, then
  # kill. Repeat each signal, because a server that was just started may not handle signals yet.
  [ -z "$keep" ] || exit 0
  for signal in INT QUIT KILL; do
    seconds=0
    while [ "$seconds" -lt 20 ]; do
      kill -s 0 "$postmaster" 2>/dev/null || exit 0
      send "$signal"
      sleep 1 3<&-
      seconds=$((seconds + 1))
    done
  done
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
