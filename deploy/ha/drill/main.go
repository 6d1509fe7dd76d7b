// Drill breaks the high-availability deployment of deploy/ha during sales, and compares the answers
// of each sale with what the service has stored.
//
// It starts the containers, and removes them with their data at the end. It repeats a failover
// --kills times: start a sale, kill the primary (docker kill), wait until a standby is the new
// primary, start the old primary, and wait until it is a synchronous standby. With --rolling it
// then replaces both instances of the service, one after the other, during another sale in which no
// request may fail.
//
// It exits with 1 if a guarantee was violated.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"scalable-coupon-system/deploy/internal/drill"
)

type options struct {
	kills   int
	rolling bool
	keep    bool
	address string
	rate    float64
}

func main() {
	os.Exit(drill.Main("ha-drill", func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) }))
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("ha-drill", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.IntVar(&o.kills, "kills", 3, "`number` of times the primary is killed")
	flags.BoolVar(&o.rolling, "rolling", true, "also replace the instances of the service under load")
	flags.BoolVar(&o.keep, "keep", false, "leave the containers running")
	flags.StringVar(&o.address, "address", "127.0.0.1:8090", "`host:port` of the load balancer on this machine")
	flags.Float64Var(&o.rate, "rate", 500, "claims per `second`")
	if err := flags.Parse(args); err != nil {
		return err
	}

	c := &cluster{
		Deployment: drill.Deployment{
			Project: "coupond-ha", File: "deploy/ha/docker-compose.yml", Environ: []string{"COUPOND_HA_PUBLISH=" + o.address},
		},
		out: out,
	}
	began := time.Now()
	return c.Run(ctx, o.keep, func(ctx context.Context) error {
		if err := drill.AwaitHealthy(ctx, o.address); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "three nodes and two instances are healthy after %.0f s\n", time.Since(began).Seconds())
		return runDrills(ctx, c, o)
	})
}

func runDrills(ctx context.Context, c *cluster, o options) error {
	passed := true
	for i := range o.kills {
		ok, err := failover(ctx, c, o, i)
		if err != nil {
			return err
		}
		passed = passed && ok
	}
	if o.rolling {
		ok, err := rollingUpgrade(ctx, c, o)
		if err != nil {
			return err
		}
		passed = passed && ok
	}
	if !passed {
		return drill.ErrFailed
	}
	_, _ = fmt.Fprintln(c.out, "passed")
	return nil
}

// openSale starts a sale of one coupon.
func openSale(ctx context.Context, o options, coupon string, duration time.Duration) (*drill.Sale, error) {
	return drill.Open(ctx, drill.Plan{Address: o.address, Connections: 64, Rate: o.rate, Duration: duration, Coupons: []string{coupon}})
}

// failover kills the primary during a sale. ok says that no guarantee was violated.
func failover(ctx context.Context, c *cluster, o options, i int) (ok bool, err error) {
	old, err := c.awaitReplication(ctx)
	if err != nil {
		return false, err
	}
	// 60 s cover the time before the kill, the failover, and some time after it.
	s, err := openSale(ctx, o, fmt.Sprintf("failover %d", i+1), 60*time.Second)
	if err != nil {
		return false, err
	}
	opened := time.Now()
	if err := drill.Sleep(ctx, 5*time.Second); err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "kill %d: %s, the primary, under %.0f claims per second\n", i+1, old, o.rate)
	if err := c.Kill(ctx, old); err != nil {
		return false, err
	}
	next, err := c.awaitFailover(ctx, old)
	if err != nil {
		return false, err
	}
	if err := c.Start(ctx, old); err != nil {
		return false, err
	}
	result, err := s.Close(ctx)
	if err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "  %s is the new primary; no claim granted for %.1f s; %s\n",
		next, drill.Gap(result.Replies, opened, time.Now()).Seconds(), result)
	if _, err := c.awaitReplication(ctx); err != nil {
		return false, fmt.Errorf("%s is not a synchronous standby after its restart: %w", old, err)
	}
	_, _ = fmt.Fprintf(c.out, "  %s is a synchronous standby again\n", old)
	return result.OK(), nil
}

// rollingUpgrade replaces one instance after the other during a sale. ok says that no guarantee was
// violated and no request failed.
func rollingUpgrade(ctx context.Context, c *cluster, o options) (ok bool, err error) {
	s, err := openSale(ctx, o, "rolling upgrade", 45*time.Second)
	if err != nil {
		return false, err
	}
	for _, instance := range []string{"coupond1", "coupond2"} {
		if err := drill.Sleep(ctx, 2*time.Second); err != nil {
			return false, err
		}
		if err := c.replace(ctx, instance); err != nil {
			return false, err
		}
	}
	result, err := s.Close(ctx)
	if err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "rolling upgrade: both instances replaced; failed requests %d; %s\n", result.Failed, result)
	return result.OK() && result.Failed == 0, nil
}
