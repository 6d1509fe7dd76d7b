// Command share runs another command, such as go test, whose tests share one PostgreSQL server. It
// prints which one: see package pgtest. It fails if the command fails.
//
//	go run ./internal/pgtest/share COMMAND [ARGUMENT…]
package main

import (
	"context"
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
	if err := pgtest.Share(command); err != nil {
		fmt.Fprintln(os.Stderr, "share:", err)
		os.Exit(1)
	}
}
