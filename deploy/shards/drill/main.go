// Drill breaks the sharded deployment of deploy/shards during a sale of a thousand coupons on four
// shards, and compares the answers of the sale with what the service has stored.
//
// It starts the containers, and removes them with their data at the end. During the sale it kills
// one shard (docker kill), starts it again, and moves a partition from a second shard to a third
// (deploy/shards/move). It reports the effect on the coupons concerned and on the others.
//
// It exits with 1 if a guarantee was violated, or if no claim on another shard was granted while
// the shard was dead.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/deploy/internal/drill"
)

type options struct {
	coupons  int
	rate     float64
	duration time.Duration
	keep     bool
	address  string
}

const (
	coupon     = "coupon " // followed by a number from 1
	partitions = 64
	shards     = 4
	dead       = 2    // the shard that is killed
	from, to   = 1, 3 // the shards that a partition is moved between
)

func main() {
	os.Exit(drill.Main("shards-drill", func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) }))
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("shards-drill", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.IntVar(&o.coupons, "coupons", 1000, "`number` of coupons")
	flags.Float64Var(&o.rate, "rate", 500, "claims per `second`")
	flags.DurationVar(&o.duration, "duration", time.Minute, "`duration` of the sale; one shard is dead for a sixth of it")
	flags.BoolVar(&o.keep, "keep", false, "leave the containers running")
	flags.StringVar(&o.address, "address", "127.0.0.1:8091", "`host:port` of the service on this machine")
	if err := flags.Parse(args); err != nil {
		return err
	}

	d := &deployment{
		// Another project than in README.md, because the drill removes its containers at the end.
		Deployment: drill.Deployment{
			Project: "coupond-shards-drill", File: "deploy/shards/docker-compose.yml", Environ: []string{"COUPOND_SHARDS_PUBLISH=" + o.address},
		},
	}
	began := time.Now()
	return d.Run(ctx, o.keep, func(ctx context.Context) error {
		if err := drill.AwaitHealthy(ctx, o.address); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "a proxy, %d shards and the service are healthy after %.0f s\n", shards, time.Since(began).Seconds())
		return sell(ctx, d, o, out)
	})
}

// sell runs the sale, kills and moves during it, and reports the result.
func sell(ctx context.Context, d *deployment, o options, out io.Writer) error {
	partitionOf, err := d.partitions(ctx, o.coupons)
	if err != nil {
		return err
	}
	// The partition of shard from with the most coupons, because it shows the effect of a move
	// best.
	moved := fullest(partitionOf, func(p int) bool { return p%shards == from })
	s, err := drill.Open(ctx, drill.Plan{
		// Enough connections that claims waiting for the dead shard do not delay the others.
		Address: o.address, Connections: 512, Rate: o.rate, Duration: o.duration, Coupons: names(o.coupons),
	})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%d coupons created; %.0f claims per second for %v\n", o.coupons, o.rate, o.duration)

	var at moments
	at.opened = time.Now()
	if at.killed, err = after(ctx, o.duration/6, func() error { return d.Kill(ctx, shard(dead)) }); err != nil {
		return err
	}
	if at.started, err = after(ctx, o.duration/6, func() error { return d.Start(ctx, shard(dead)) }); err != nil {
		return err
	}
	if err := d.awaitReady(ctx, shard(dead)); err != nil {
		return err
	}
	at.ready = time.Now()
	if at.moving, err = after(ctx, o.duration/12, func() error { return d.move(ctx, moved) }); err != nil {
		return err
	}
	at.moved = time.Now()
	if !s.Running() {
		return fmt.Errorf("the sale ended before the partition had moved; use a --duration longer than %v", o.duration)
	}
	result, err := s.Close(ctx)
	if err != nil {
		return err
	}
	return report(out, result, partitionOf, moved, at)
}

// moments are the times of the steps of a drill.
type moments struct{ opened, killed, started, ready, moving, moved time.Time }

// after waits for pause and calls fn. It returns the time of the call.
func after(ctx context.Context, pause time.Duration, fn func() error) (time.Time, error) {
	if err := drill.Sleep(ctx, pause); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, fn()
}

// report prints the effect of the dead shard and of the move, and returns drill.ErrFailed if the
// drill has failed. partitionOf has the partition of each coupon.
func report(out io.Writer, result drill.Result, partitionOf []int, moved int, at moments) error {
	isDead := func(coupon int) bool { return partitionOf[coupon]%shards == dead }
	isMoved := func(coupon int) bool { return partitionOf[coupon] == moved }
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }

	concerned, others := divide(between(result.Replies, at.opened, at.moving), isDead)
	ofDead, _ := divide(result.Replies, isDead)
	meanwhile := perSecond(others, at.killed, at.started)
	printf("%s killed after %.1f s, started %.1f s later, ready %.1f s after that", shard(dead),
		at.killed.Sub(at.opened).Seconds(), at.started.Sub(at.killed).Seconds(), at.ready.Sub(at.started).Seconds())
	printf("  its %d coupons: no claim granted for %.1f s; %s", count(partitionOf, isDead), drill.Gap(ofDead, at.opened, at.moving).Seconds(), refusals(concerned))
	printf("  other coupons: %.0f claims per second granted before, %.0f while it was dead; %s",
		perSecond(others, at.opened, at.killed), meanwhile, refusals(others))

	// Five more seconds, for the first claim that is granted after the move. Not until the end of
	// the sale, when the stock runs out.
	until := at.moved.Add(5 * time.Second)
	concerned, others = divide(between(result.Replies, at.moving, until), isMoved)
	ofMoved, _ := divide(result.Replies, isMoved)
	printf("partition %d moved from %s to %s in %.1f s", moved, shard(from), shard(to), at.moved.Sub(at.moving).Seconds())
	printf("  its %d coupons: no claim granted for %.1f s; %s", count(partitionOf, isMoved), drill.Gap(ofMoved, at.moving, until).Seconds(), refusals(concerned))
	printf("  other coupons: %.0f claims per second granted during the move; %s", perSecond(others, at.moving, at.moved), refusals(others))

	printf("%s", result)
	switch {
	case !result.OK():
		return drill.ErrFailed
	case meanwhile == 0:
		return fmt.Errorf("%w: no claim on another shard was granted while %s was dead", drill.ErrFailed, shard(dead))
	}
	printf("passed")
	return nil
}

func names(coupons int) []string {
	list := make([]string, coupons)
	for i := range list {
		list[i] = coupon + strconv.Itoa(i+1)
	}
	return list
}

// fullest returns the partition with the most coupons, of those that eligible accepts.
func fullest(partitionOf []int, eligible func(partition int) bool) int {
	var coupons [partitions]int
	for _, p := range partitionOf {
		if eligible(p) {
			coupons[p]++
		}
	}
	return slices.Index(coupons[:], slices.Max(coupons[:]))
}

func count(partitionOf []int, match func(coupon int) bool) (n int) {
	for coupon := range partitionOf {
		if match(coupon) {
			n++
		}
	}
	return n
}

func between(replies []drill.Reply, from, to time.Time) []drill.Reply {
	return slices.DeleteFunc(slices.Clone(replies), func(r drill.Reply) bool { return r.At.Before(from) || r.At.After(to) })
}

// divide separates the replies on coupons that match from the others.
func divide(replies []drill.Reply, match func(coupon int) bool) (matching, others []drill.Reply) {
	for _, r := range replies {
		if match(r.Coupon) {
			matching = append(matching, r)
		} else {
			others = append(others, r)
		}
	}
	return matching, others
}

// perSecond returns the number of claims granted per second.
func perSecond(replies []drill.Reply, from, to time.Time) float64 {
	n := 0
	for _, r := range between(replies, from, to) {
		if r.Answer == load.Claimed {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// refusals counts the answers that were not definite, by answer.
func refusals(replies []drill.Reply) string {
	times := make(map[string]int)
	for _, r := range replies {
		if !r.Answer.Definite() {
			times[r.Answer.String()]++
		}
	}
	if len(times) == 0 {
		return "none refused"
	}
	list := make([]string, 0, len(times))
	for answer, n := range times {
		list = append(list, fmt.Sprintf("%d × %s", n, answer))
	}
	slices.Sort(list)
	return "refused: " + strings.Join(list, ", ")
}
