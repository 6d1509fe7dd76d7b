// Try sells a thousand coupons that are spread over four shards (deploy/shards) while it breaks and moves them, and compares
// what each user was told with what the service reports afterwards.
//
// On the way it ends one shard as a crash of its machine does (docker kill), starts it again, and moves a partition from
// another shard to a third (deploy/shards/move). It says what that cost the coupons concerned, and what the others.
//
// It starts the containers, and removes them with their data in the end. It exits with 1 when the books are not clean, or when
// the dead shard cost the others all of their claims.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

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

// What happens to which of the four.
const (
	coupon     = "coupon " // and its number, from 1 on
	partitions = 64
	shards     = 4
	dead       = 2
	from, to   = 1, 3
)

func main() {
	os.Exit(drill.Main("shards-demo", func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) }))
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("shards-demo", flag.ContinueOnError)
	flags.IntVar(&o.coupons, "coupons", 1000, "how `many` coupons are sold")
	flags.Float64Var(&o.rate, "rate", 500, "claims that arrive in a `second`")
	flags.DurationVar(&o.duration, "duration", time.Minute, "how `long` claims arrive; a sixth of it one shard is dead")
	flags.BoolVar(&o.keep, "keep", false, "leave the containers running in the end")
	flags.StringVar(&o.address, "address", "127.0.0.1:8091", "where the service is published on this machine, as `host:port`")
	if err := flags.Parse(args); err != nil {
		return err
	}

	d := &deployment{
		// Not the project that README.md names: what somebody has running there is not this program's to remove.
		Deployment: drill.Deployment{
			Project: "coupon-shards-demo", File: "deploy/shards/docker-compose.yml", Environ: []string{"COUPON_SHARDS_PUBLISH=" + o.address},
		},
	}
	began := time.Now()
	return d.Run(ctx, o.keep, func(ctx context.Context) error {
		if err := drill.Healthy(ctx, o.address); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "a proxy, %d shards and the service stand after %.0f s\n", shards, time.Since(began).Seconds())
		return sell(ctx, d, o, out)
	})
}

// sell opens the sale, lets happen what is to happen, and says what came of it.
func sell(ctx context.Context, d *deployment, o options, out io.Writer) error {
	where, err := d.partitions(ctx, o.coupons)
	if err != nil {
		return err
	}
	// Of what the shard has, the partition with the most coupons: its refusals are seen best.
	moved := fullest(where, func(p int) bool { return p%shards == from })
	s, err := drill.Open(ctx, drill.Plan{
		// Those whose coupons are refused wait for their answers, and must not keep the others from arriving.
		Address: o.address, Connections: 512, Rate: o.rate, Duration: o.duration, Coupons: names(o.coupons),
	})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%d coupons are there; %.0f claims arrive in a second, for %v\n", o.coupons, o.rate, o.duration)

	var at times
	at.opened = time.Now()
	if at.killed, err = after(ctx, o.duration/6, func() error { return d.Kill(ctx, shard(dead)) }); err != nil {
		return err
	}
	if at.started, err = after(ctx, o.duration/6, func() error { return d.Start(ctx, shard(dead)) }); err != nil {
		return err
	}
	if err := d.ready(ctx, shard(dead)); err != nil {
		return err
	}
	at.answering = time.Now()
	if at.moving, err = after(ctx, o.duration/12, func() error { return d.move(ctx, moved) }); err != nil {
		return err
	}
	at.moved = time.Now()
	if !s.Arriving() {
		return fmt.Errorf("the sale was over before the partition had moved: a longer -duration than %v", o.duration)
	}
	b, err := s.Close(ctx)
	if err != nil {
		return err
	}
	return tell(out, b, where, moved, at)
}

// times are when what happened.
type times struct{ opened, killed, started, answering, moving, moved time.Time }

// after waits for so long and calls do. It returns when it called it.
func after(ctx context.Context, pause time.Duration, do func() error) (time.Time, error) {
	if err := drill.Sleep(ctx, pause); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, do()
}

// tell says what was seen. where has the partition of each coupon.
func tell(out io.Writer, b drill.Result, where []int, moved int, at times) error {
	isDead := func(coupon int) bool { return where[coupon]%shards == dead }
	isMoved := func(coupon int) bool { return where[coupon] == moved }
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }

	its, others := divide(between(b.Replies, at.opened, at.moving), isDead)
	always, _ := divide(b.Replies, isDead)
	meanwhile := perSecond(others, at.killed, at.started)
	say("%s killed after %.1f s, started again %.1f s later, answering after %.1f s", shard(dead),
		at.killed.Sub(at.opened).Seconds(), at.started.Sub(at.killed).Seconds(), at.answering.Sub(at.started).Seconds())
	say("  its %d coupons: no claim granted for %.1f s; %s", count(where, isDead), drill.Gap(always, at.opened, at.moving).Seconds(), refusals(its))
	say("  the others: %.0f claims granted in a second before, %.0f while it was dead; %s",
		perSecond(others, at.opened, at.killed), meanwhile, refusals(others))

	// Some seconds more, for the first claim that is granted again; but not to the end, where the stock runs out.
	seen := at.moved.Add(5 * time.Second)
	its, others = divide(between(b.Replies, at.moving, seen), isMoved)
	always, _ = divide(b.Replies, isMoved)
	say("partition %d moved from %s to %s in %.1f s", moved, shard(from), shard(to), at.moved.Sub(at.moving).Seconds())
	say("  its %d coupons: no claim granted for %.1f s; %s", count(where, isMoved), drill.Gap(always, at.moving, seen).Seconds(), refusals(its))
	say("  the others: %.0f claims granted in a second meanwhile; %s", perSecond(others, at.moving, at.moved), refusals(others))

	say("%s", b)
	switch {
	case !b.OK():
		return drill.ErrNotClean
	case meanwhile == 0:
		return fmt.Errorf("%w: one dead shard kept the others from selling", drill.ErrNotClean)
	}
	say("clean")
	return nil
}

func names(coupons int) []string {
	list := make([]string, coupons)
	for i := range list {
		list[i] = coupon + strconv.Itoa(i+1)
	}
	return list
}

// fullest is the partition with the most coupons, of those that may be taken.
func fullest(where []int, may func(partition int) bool) int {
	var coupons [partitions]int
	for _, p := range where {
		if may(p) {
			coupons[p]++
		}
	}
	return slices.Index(coupons[:], slices.Max(coupons[:]))
}

func count(where []int, belongs func(coupon int) bool) (n int) {
	for coupon := range where {
		if belongs(coupon) {
			n++
		}
	}
	return n
}

func between(told []drill.Reply, from, to time.Time) []drill.Reply {
	return slices.DeleteFunc(slices.Clone(told), func(t drill.Reply) bool { return t.At.Before(from) || t.At.After(to) })
}

// divide tells the answers about some coupons from those about the others.
func divide(told []drill.Reply, belongs func(coupon int) bool) (its, others []drill.Reply) {
	for _, t := range told {
		if belongs(t.Coupon) {
			its = append(its, t)
		} else {
			others = append(others, t)
		}
	}
	return its, others
}

// perSecond is how many claims were granted in a second.
func perSecond(told []drill.Reply, from, to time.Time) float64 {
	n := 0
	for _, t := range between(told, from, to) {
		if t.Answer == load.Claimed {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// refusals counts the answers that were not clear, by what they were.
func refusals(told []drill.Reply) string {
	times := make(map[string]int)
	for _, t := range told {
		if !t.Answer.Definite() {
			times[t.Answer.String()]++
		}
	}
	if len(times) == 0 {
		return "none was refused"
	}
	list := make([]string, 0, len(times))
	for answer, n := range times {
		list = append(list, fmt.Sprintf("%d × %s", n, answer))
	}
	slices.Sort(list)
	return "refused: " + strings.Join(list, ", ")
}
