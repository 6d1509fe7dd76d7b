// Try breaks a running high-availability deployment (deploy/ha) while a sale goes on, and compares what each user was told
// with what the service reports afterwards.
//
// For each -kills it starts a sale, ends the primary as a crash of its machine does (docker kill), waits until a standby has
// taken over, brings the old primary back and wants it to be a synchronous standby again. With -rolling it then replaces both
// instances of the service, one after the other, while a sale goes on, of which not one request may fail.
//
// It starts the containers, and removes them with their data in the end. It exits with 1 when the books are not clean.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

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
	os.Exit(drill.Main("failover", func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) }))
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	flags.IntVar(&o.kills, "kills", 3, "how `often` the primary is killed")
	flags.BoolVar(&o.rolling, "rolling", true, "replace the instances of the service under load, too")
	flags.BoolVar(&o.keep, "keep", false, "leave the containers running in the end")
	flags.StringVar(&o.address, "address", "127.0.0.1:8090", "where the balancer is published on this machine, as `host:port`")
	flags.Float64Var(&o.rate, "rate", 500, "claims that arrive in a `second`")
	if err := flags.Parse(args); err != nil {
		return err
	}

	c := &cluster{
		Deployment: drill.Deployment{
			Project: "coupon-ha", File: "deploy/ha/docker-compose.yml", Environ: []string{"COUPON_HA_PUBLISH=" + o.address},
		},
		out: out,
	}
	began := time.Now()
	return c.Run(ctx, o.keep, func(ctx context.Context) error {
		if err := drill.Healthy(ctx, o.address); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "three nodes and two instances stand after %.0f s\n", time.Since(began).Seconds())
		return drills(ctx, c, o)
	})
}

func drills(ctx context.Context, c *cluster, o options) error {
	clean := true
	for i := range o.kills {
		ok, err := failover(ctx, c, o, i)
		if err != nil {
			return err
		}
		clean = clean && ok
	}
	if o.rolling {
		ok, err := upgrade(ctx, c, o)
		if err != nil {
			return err
		}
		clean = clean && ok
	}
	if !clean {
		return drill.ErrNotClean
	}
	_, _ = fmt.Fprintln(c.out, "clean")
	return nil
}

// sale opens a sale of one coupon.
func sale(ctx context.Context, o options, coupon string, duration time.Duration) (*drill.Sale, error) {
	return drill.Open(ctx, drill.Plan{Address: o.address, Connections: 64, Rate: o.rate, Duration: duration, Coupons: []string{coupon}})
}

// failover kills the primary in the middle of a sale.
func failover(ctx context.Context, c *cluster, o options, i int) (clean bool, err error) {
	old, err := c.settled(ctx)
	if err != nil {
		return false, err
	}
	// 60 s of arrivals: some before the kill, the gap, and enough afterwards.
	s, err := sale(ctx, o, fmt.Sprintf("failover %d", i+1), 60*time.Second)
	if err != nil {
		return false, err
	}
	opened := time.Now()
	if err := drill.Sleep(ctx, 5*time.Second); err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "kill %d: %s, the primary, under %.0f claims a second\n", i+1, old, o.rate)
	if err := c.Kill(ctx, old); err != nil {
		return false, err
	}
	next, err := c.takenOver(ctx, old)
	if err != nil {
		return false, err
	}
	if err := c.Start(ctx, old); err != nil {
		return false, err
	}
	b, err := s.Close(ctx)
	if err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "  %s took over; gap in service %.1f s; %s\n", next, drill.Gap(b.Replies, opened, time.Now()).Seconds(), b)
	if _, err := c.settled(ctx); err != nil {
		return false, fmt.Errorf("%s did not come back as a standby: %w", old, err)
	}
	_, _ = fmt.Fprintf(c.out, "  %s is a synchronous standby again\n", old)
	return b.OK(), nil
}

// upgrade replaces one instance after the other in the middle of a sale.
func upgrade(ctx context.Context, c *cluster, o options) (clean bool, err error) {
	s, err := sale(ctx, o, "rolling upgrade", 45*time.Second)
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
	b, err := s.Close(ctx)
	if err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(c.out, "rolling upgrade: both instances replaced; failed requests %d; %s\n", b.Failed, b)
	return b.OK() && b.Failed == 0, nil
}
