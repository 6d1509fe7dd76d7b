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
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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

// run runs the steps of deploy/ha and then those of deploy/shards, both in the order of the command
// line.
func run(ctx context.Context, o options, out io.Writer) error {
	ha := &drill{o, newDeployment("coupond-ha", "deploy/ha", "COUPOND_HA_PUBLISH", "127.0.0.1:8090"), out}
	// Another project than in its README.md, because the containers are removed at the end.
	shards := &drill{o, newDeployment("coupond-shards-drill", "deploy/shards", "COUPOND_SHARDS_PUBLISH", "127.0.0.1:8091"), out}
	steps := map[string]struct {
		*drill
		run func(context.Context) error
	}{"failover": {ha, ha.failover}, "rolling": {ha, ha.rolling}, "shards": {shards, shards.killAndMove}, "move": {shards, shards.move}}
	for _, d := range []*drill{ha, shards} {
		var wanted []func(context.Context) error
		for _, name := range o.Steps {
			if step := steps[name]; step.drill == d {
				wanted = append(wanted, step.run)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		if err := d.runSteps(ctx, wanted); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintln(out, "passed")
	return nil
}

// runSteps builds and starts the containers and runs the steps. Afterwards it removes the
// containers with their data, unless they are to be kept.
func (d *drill) runSteps(ctx context.Context, steps []func(context.Context) error) (err error) {
	if !d.Keep {
		defer func() {
			err = errors.Join(err, d.compose(context.WithoutCancel(ctx), "down", "--volumes", "--remove-orphans", "--timeout", "10"))
		}()
	}
	began := time.Now()
	// Without --force-rm the classic builder leaves the container of an interrupted step.
	for _, args := range [][]string{{"build", "--force-rm"}, {"up", "--detach"}} {
		if err := d.compose(ctx, args...); err != nil {
			return err
		}
	}
	if err := d.awaitHealthy(ctx); err != nil {
		return err
	}
	d.printf("%s is healthy after %.0f s", d.folder, time.Since(began).Seconds())
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
