// Command go shows a client of the coupons that does time-outs and retries right: client.go, which needs nothing but
// Go's own library and is there to be copied. This file uses it:
//
//	go run ./_examples/go -url http://127.0.0.1:8080
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	base := flag.String("url", "http://127.0.0.1:8080", "where the service is")
	coupon := flag.String("coupon", "go example", "the coupon that is created and claimed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	lines, err := show(ctx, New(*base), *coupon)
	stop()
	for _, line := range lines {
		_, _ = fmt.Fprintln(os.Stdout, line)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// show creates a coupon of two pieces, lets three users claim it, and reads it.
func show(ctx context.Context, client *Client, coupon string) (lines []string, err error) {
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
