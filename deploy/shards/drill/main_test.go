package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/deploy/internal/drill"
)

// Coupons 0 and 1 are on the shard that is killed, 2 is on the partition that is moved, 3 on
// neither.
var (
	partitionOf = []int{dead, dead + shards, from + shards, to}
	start       = time.UnixMilli(0)
	at          = moments{start, start.Add(2 * time.Second), start.Add(4 * time.Second), start.Add(5 * time.Second), start.Add(6 * time.Second), start.Add(7 * time.Second)}
)

func reply(ms, coupon int, answer load.Answer) drill.Reply {
	return drill.Reply{Coupon: coupon, Answer: answer, At: start.Add(time.Duration(ms) * time.Millisecond)}
}

func TestReport_effects(t *testing.T) {
	t.Parallel()
	result := drill.Result{Replies: []drill.Reply{
		reply(1000, 0, load.Claimed), reply(1500, 3, load.Claimed), reply(1600, 2, load.Claimed),
		reply(2500, 0, load.OutcomeUnknown), reply(2600, 1, load.Unavailable), reply(2700, 1, load.Unavailable), // dead
		reply(2800, 3, load.Claimed), reply(2900, 2, load.Claimed), reply(3000, 2, load.Claimed), reply(3100, 3, load.OutcomeUnknown),
		reply(5000, 1, load.Claimed),
		reply(6100, 2, load.Claimed), reply(6200, 2, load.Unavailable), reply(6300, 3, load.Claimed), // during the move
		reply(7600, 2, load.Claimed),
		reply(20000, 2, load.OutOfStock), reply(20000, 3, load.Claimed), // long after
	}}
	var out strings.Builder
	if err := report(&out, result, partitionOf, from+shards, at); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"shard2 killed after 2.0 s, started 2.0 s later, ready 1.0 s after that\n" +
			"  its 2 coupons: no claim granted for 4.0 s; refused: 1 × 503 OUTCOME_UNKNOWN, 2 × 503 UNAVAILABLE\n" +
			"  other coupons: 1 claims per second granted before, 2 while it was dead; refused: 1 × 503 OUTCOME_UNKNOWN\n",
		"partition 5 moved from shard1 to shard3 in 1.0 s\n" +
			"  its 1 coupons: no claim granted for 1.5 s; refused: 1 × 503 UNAVAILABLE\n" +
			"  other coupons: 1 claims per second granted during the move; none refused\n",
		"\npassed\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant in it\n%s", out.String(), want)
		}
	}
}

// If no claim on the killed shard is granted before the move, the outage lasts at least until the
// move.
func TestReport_outageUntilMove(t *testing.T) {
	t.Parallel()
	result := drill.Result{Replies: []drill.Reply{reply(1000, 0, load.Claimed), reply(2800, 3, load.Claimed), reply(9000, 0, load.Claimed)}}
	var out strings.Builder
	if err := report(&out, result, partitionOf, from+shards, at); err != nil {
		t.Error(err)
	}
	if want := "its 2 coupons: no claim granted for 5.0 s;"; !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant in it\n%s", out.String(), want)
	}
}

func TestReport_failedDrill(t *testing.T) {
	t.Parallel()
	sold := []drill.Reply{reply(2800, 3, load.Claimed)}
	if err := report(io.Discard, drill.Result{Replies: sold}, partitionOf, from, at); err != nil {
		t.Error(err)
	}
	if err := report(io.Discard, drill.Result{Replies: sold, Lost: 1}, partitionOf, from, at); err == nil {
		t.Error("no error, although a claim was lost")
	}
	if err := report(io.Discard, drill.Result{Replies: []drill.Reply{reply(2800, 0, load.Claimed)}}, partitionOf, from, at); err == nil {
		t.Error("no error, although no claim on another shard was granted while one was dead")
	}
}

func TestFullest_onlyEligible(t *testing.T) {
	t.Parallel()
	list := []int{0, 0, 0, 0, 5, 9, 9, 9, 1, 1}
	if got := fullest(list, func(p int) bool { return p%shards == from }); got != 9 {
		t.Errorf("partition %d, want 9", got)
	}
}
