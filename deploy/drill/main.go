// Drill breaks a deployment during a sale, and compares all answers of the sale with what the
// service has stored.
//
//	go run ./deploy/drill failover rolling
//
//	failover  kill the primary of deploy/ha --kills times; each time a standby must take over
//	rolling   replace both instances of deploy/ha, one after the other; no request may fail
//	shards    kill a shard of deploy/shards and start it, then move a partition between two others
//	move      only move a partition
//
// It starts the containers, and removes them with their data at the end. The exit status is 1 if a
// guarantee was violated, or if no claim on an unaffected shard was granted.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

type options struct {
	Steps    []string      `arg:"" enum:"failover,rolling,shards,move" help:"The steps: failover, rolling, shards, move."`
	Kills    int           `default:"3" help:"How often failover kills the primary."`
	Rate     float64       `default:"500" help:"Claims per second."`
	Duration time.Duration `default:"1m" help:"Duration of each sale. Use more on a slow machine."`
	Keep     bool          `help:"Leave the containers running."`
}

func main() {
	var o options
	kong.Parse(&o, kong.Name("drill"), kong.Description("Breaks a deployment during a sale, and checks all answers. The service is "+
		"at COUPOND_HA_PUBLISH (127.0.0.1:8090) for failover and rolling, at COUPOND_SHARDS_PUBLISH (127.0.0.1:8091) for shards and move."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "drill:", err)
		os.Exit(1)
	}
}

// drill has the steps of one deployment.
type drill struct {
	options
	deployment
	out io.Writer
}

func (d *drill) printf(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

// step is a step of the command line.
type step func(context.Context) error

// run runs the steps of deploy/ha and then those of deploy/shards, both in the order of the command
// line.
func run(ctx context.Context, o options, out io.Writer) error {
	ha := &drill{o, deployment{"coupond-ha", "deploy/ha", cmp.Or(os.Getenv("COUPOND_HA_PUBLISH"), "127.0.0.1:8090")}, out}
	// Another project than in its README.md, because the containers are removed at the end.
	shards := &drill{o, deployment{"coupond-shards-drill", "deploy/shards", cmp.Or(os.Getenv("COUPOND_SHARDS_PUBLISH"), "127.0.0.1:8091")}, out}
	if err := ha.runSteps(ctx, map[string]step{"failover": ha.failover, "rolling": ha.rolling}); err != nil {
		return err
	}
	if err := shards.runSteps(ctx, map[string]step{
		"shards": func(ctx context.Context) error { return shards.sellOnShards(ctx, "coupon ", true) },
		"move":   func(ctx context.Context) error { return shards.sellOnShards(ctx, "moved coupon ", false) },
	}); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(out, "passed")
	return nil
}

// runSteps builds and starts the containers and runs those of the steps that are wanted, if any.
// Afterwards it removes the containers with their data, unless they are to be kept.
func (d *drill) runSteps(ctx context.Context, steps map[string]step) (err error) {
	wanted := slices.DeleteFunc(slices.Clone(d.Steps), func(name string) bool { return steps[name] == nil })
	if len(wanted) == 0 {
		return nil
	}
	if !d.Keep {
		defer func() {
			_, problem := d.compose(context.WithoutCancel(ctx), "down", "--volumes", "--remove-orphans", "--timeout", "10")
			err = errors.Join(err, problem)
		}()
	}
	began := time.Now()
	// Without --force-rm the classic builder leaves the container of an interrupted step.
	for _, args := range [][]string{{"build", "--force-rm"}, {"up", "--detach"}} {
		if _, err := d.compose(ctx, args...); err != nil {
			return err
		}
	}
	if err := d.awaitHealthy(ctx); err != nil {
		return err
	}
	d.printf("%s is healthy after %.0f s", d.folder, time.Since(began).Seconds())
	for _, name := range wanted {
		if err := steps[name](ctx); err != nil {
			return err
		}
	}
	return nil
}
