package main

import (
	"testing"
	"time"
)

func TestGapIsTheLongestTimeWithoutAGrantedClaim(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	// In no order: many connections note what they were told.
	if got := gap([]time.Time{at(5), at(0), at(120), at(20), at(125)}); got != 100*time.Millisecond {
		t.Errorf("%v", got)
	}
	if got := gap(nil); got != 0 {
		t.Errorf("nobody was granted anything: %v", got)
	}
}

func TestNotClean(t *testing.T) {
	t.Parallel()
	if b := (result{acknowledged: 10, unknown: 3, failed: 5}); !b.clean() {
		t.Errorf("not clean: %s", b)
	}
	for _, b := range []result{{lost: 1}, {doubled: 1}, {oversold: 1}, {broken: []string{"a promise"}}} {
		if b.clean() {
			t.Errorf("clean: %s", b)
		}
	}
}

func TestLeader(t *testing.T) {
	t.Parallel()
	list := []member{{"pg1", "Quorum Standby", "streaming"}, {"pg2", "Leader", "running"}}
	if got := leader(list); got != "pg2" {
		t.Errorf("%q", got)
	}
	list[1].State = "starting"
	if got := leader(list); got != "" {
		t.Errorf("%q takes no writes yet", got)
	}
}
