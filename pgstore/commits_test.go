package pgstore

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// A server that reads and does not commit is not ready, says why, and is ready again by
// itself. Whoever asks meanwhile leaves no session behind.
func TestReadyWhenCommitsDoNotComeBack(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 100)
	wantReady(t, s.Store)

	standby := func(names string) {
		s.exec(t, `set synchronous_commit = local`)
		s.exec(t, `alter system set synchronous_standby_names = '`+names+`'`)
		s.exec(t, `select pg_reload_conf()`)
	}
	standby("nobody")
	// Commits wait only when the checkpointer has read the setting, too.
	n := 0
	eventually(t, "a claim waits for the standby", func() bool {
		n++
		_, err := s.Claim(t.Context(), string(rune('a'+n%26))+time.Now().String(), "c")
		return errors.Is(err, ErrOutcomeUnknown)
	})
	const why = "commits do not come back"
	wantReady(t, s.Store, why, "synchronous standby")
	before := s.sessions(t)
	for range 3 {
		wantReady(t, s.Store, why)
	}
	if after := s.sessions(t); after > before {
		t.Errorf("asking three times left %d sessions more", after-before)
	}
	s.wantNoCancelRequest(t)

	standby("")
	eventually(t, "it is ready", func() bool { return s.Ready(t.Context()) == nil })
	if status, err := s.Claim(t.Context(), "after", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
	if holders := s.holders(t, "c"); !slices.Contains(holders, "after") {
		t.Errorf("held by %q", holders)
	}
}

// Close ends a probe that waits.
func TestCloseWhileAProbeWaits(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url))
	s.exec(t, `set synchronous_commit = local`)
	s.exec(t, `alter system set synchronous_standby_names = 'nobody'`)
	s.exec(t, `select pg_reload_conf()`)
	eventually(t, "the probe waits", func() bool {
		s.commits.doubted()
		return s.Ready(t.Context()) != nil
	})
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close waits for a commit that does not come back")
	}
	// So that the server of the test can be stopped in peace.
	s.exec(t, `alter system set synchronous_standby_names = ''`)
	s.exec(t, `select pg_reload_conf()`)
}
