package main

import "testing"

func TestLeader(t *testing.T) {
	t.Parallel()
	list := []member{{"pg1", "Quorum Standby", "streaming"}, {"pg2", "Leader", "running"}}
	if got := leader(list); got != "pg2" {
		t.Errorf("%q, want pg2", got)
	}
	list[1].State = "starting"
	if got := leader(list); got != "" {
		t.Errorf("%q, want none: the leader is still starting", got)
	}
}
