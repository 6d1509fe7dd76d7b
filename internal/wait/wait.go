// Package wait lets a test wait for a condition instead of sleeping for a fixed time.
package wait

import (
	"os"
	"testing"
	"time"
)

// timeout is generous: only a failing test waits that long. TEST_WAIT shortens it where many tests
// are to fail (test/mutants).
var timeout = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TEST_WAIT")); err == nil {
		return d
	}
	return time.Minute
}()

// For calls condition every 2 ms until it returns true. After a minute it fails the test and names
// what it waited for.
func For(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(timeout); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited %v for %s", timeout, what)
		}
	}
}
