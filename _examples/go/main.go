// Command go is an example of a client with correct timeouts and retries. The client is client.go;
// copy it, it needs only the standard library. This file uses it:
//
//	go run ./_examples/go --url http://127.0.0.1:8080
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	base := flag.String("url", "http://127.0.0.1:8080", "URL of the service")
	coupon := flag.String("coupon", "go example", "name of the coupon to create and claim")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	lines, err := run(ctx, New(*base), *coupon)
	stop()
	for _, line := range lines {
		_, _ = fmt.Fprintln(os.Stdout, line)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run creates a coupon with a stock of two, claims it for three users, for one of them twice, and
// reads it. It returns the lines to print.
func run(ctx context.Context, client *Client, coupon string) (lines []string, err error) {
	outcome, err := client.Create(ctx, coupon, 2)
	if err != nil {
		return nil, err
	}
	lines = append(lines, fmt.Sprintf("%s: %s", coupon, outcome))
	for _, user := range []string{"ada", "grace", "ada", "alan"} {
		if outcome, err = client.Claim(ctx, user, coupon); err != nil {
			return lines, err
		}
		lines = append(lines, fmt.Sprintf("%s: %s", user, outcome))
	}
	read, _, err := client.Read(ctx, coupon)
	if err != nil {
		return lines, err
	}
	return append(lines, fmt.Sprintf("%d of %d left, claimed by %v", read.RemainingAmount, read.Amount, read.ClaimedBy)), nil
}
