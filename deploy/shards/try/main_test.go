package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/deploy/internal/drill"
)

// Coupons 0 and 1 are on the shard that dies, 2 on the partition that moves, 3 elsewhere.
var (
	where = []int{dead, dead + shards, from + shards, to}
	start = time.UnixMilli(0)
	at    = times{start, start.Add(2 * time.Second), start.Add(4 * time.Second), start.Add(5 * time.Second), start.Add(6 * time.Second), start.Add(7 * time.Second)}
)

func told(ms, coupon int, answer load.Answer) drill.Reply {
	return drill.Reply{Coupon: coupon, Answer: answer, At: start.Add(time.Duration(ms) * time.Millisecond)}
}

func TestTellSaysWhatItCostWhom(t *testing.T) {
	t.Parallel()
	b := drill.Result{Replies: []drill.Reply{
		told(1000, 0, load.Claimed), told(1500, 3, load.Claimed), told(1600, 2, load.Claimed),
		told(2500, 0, load.OutcomeUnknown), told(2600, 1, load.Unavailable), told(2700, 1, load.Unavailable), // dead
		told(2800, 3, load.Claimed), told(2900, 2, load.Claimed), told(3000, 2, load.Claimed), told(3100, 3, load.OutcomeUnknown),
		told(5000, 1, load.Claimed),
		told(6100, 2, load.Claimed), told(6200, 2, load.Unavailable), told(6300, 3, load.Claimed), // moving
		told(7600, 2, load.Claimed),
		told(20000, 2, load.OutOfStock), told(20000, 3, load.Claimed), // long after
	}}
	var out strings.Builder
	if err := tell(&out, b, where, from+shards, at); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"shard2 killed after 2.0 s, started again 2.0 s later, answering after 1.0 s\n" +
			"  its 2 coupons: no claim granted for 4.0 s; refused: 1 × 503 OUTCOME_UNKNOWN, 2 × 503 UNAVAILABLE\n" +
			"  the others: 1 claims granted in a second before, 2 while it was dead; refused: 1 × 503 OUTCOME_UNKNOWN\n",
		"partition 5 moved from shard1 to shard3 in 1.0 s\n" +
			"  its 1 coupons: no claim granted for 1.5 s; refused: 1 × 503 UNAVAILABLE\n" +
			"  the others: 1 claims granted in a second meanwhile; none was refused\n",
		"\nclean\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not say\n%s\nbut\n%s", want, out.String())
		}
	}
}

// A shard that has not sold again when the partition moves was away until then, at least.
func TestTellCountsAnOutageThatGoesOn(t *testing.T) {
	t.Parallel()
	b := drill.Result{Replies: []drill.Reply{told(1000, 0, load.Claimed), told(2800, 3, load.Claimed), told(9000, 0, load.Claimed)}}
	var out strings.Builder
	if err := tell(&out, b, where, from+shards, at); err != nil {
		t.Error(err)
	}
	if want := "its 2 coupons: no claim granted for 5.0 s;"; !strings.Contains(out.String(), want) {
		t.Errorf("does not say\n%s\nbut\n%s", want, out.String())
	}
}

func TestTellWantsCleanBooksAndTheOthersSelling(t *testing.T) {
	t.Parallel()
	sold := []drill.Reply{told(2800, 3, load.Claimed)}
	if err := tell(io.Discard, drill.Result{Replies: sold}, where, from, at); err != nil {
		t.Error(err)
	}
	if err := tell(io.Discard, drill.Result{Replies: sold, Lost: 1}, where, from, at); err == nil {
		t.Error("a claim was lost")
	}
	if err := tell(io.Discard, drill.Result{Replies: []drill.Reply{told(2800, 0, load.Claimed)}}, where, from, at); err == nil {
		t.Error("nobody else was granted anything while the shard was dead")
	}
}

func TestFullestIsOfTheShardThatGivesAway(t *testing.T) {
	t.Parallel()
	list := []int{0, 0, 0, 0, 5, 9, 9, 9, 1, 1}
	if got := fullest(list, func(p int) bool { return p%shards == from }); got != 9 {
		t.Errorf("%d", got)
	}
}
