// Command share runs another command, such as go test, whose tests share one PostgreSQL server. It
// prints which one: see package pgtest. It ends with the exit code of the command.
//
//	go run ./internal/pgtest/share COMMAND [ARGUMENT…]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"scalable-coupon-system/internal/pgtest"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "share: no command given; usage: share COMMAND [ARGUMENT…]")
		os.Exit(2)
	}
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // Ctrl-C ends the command, and then the server
	command := exec.CommandContext(context.Background(), os.Args[1], os.Args[2:]...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := pgtest.Share(command)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(max(exit.ExitCode(), 1)) // a signal has no code
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "share:", err)
		os.Exit(1)
	}
}
