// Package wait lets a test wait for a condition instead of sleeping for a fixed time.
package wait

import (
	"testing"
	"time"
)

// timeout is generous: only a failing test waits that long.
const timeout = time.Minute

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
