package pgtest

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestChild contains the tests that other tests run in child processes (see testPackage). Otherwise
// it does nothing.
func TestChild(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		return
	}
	t.Run("none", func(*testing.T) {})
	t.Run("passing", func(t *testing.T) { New(t).Connect(t) })
	t.Run("failing", func(t *testing.T) {
		_, err := New(t).Connect(t).Exec(t.Context(), "create table public.evidence as select 'seen' as value")
		must(t, err)
		t.Error("a failure")
	})
	t.Run("failing_owner", func(t *testing.T) {
		NewOwned(t)
		t.Error("a failure")
	})
	t.Run("panicking", func(t *testing.T) {
		New(t)
		panic("a test that panics")
	})
	t.Run("private", func(t *testing.T) {
		StartServer(t, map[string]string{"fsync": "off"}).New(t)
		t.Error("a failure")
	})
	t.Run("many", func(t *testing.T) {
		for i := range 10 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				create(t, New(t), "the same name everywhere")
				NewOwned(t).Connect(t)
			})
		}
	})
	t.Run("waiting", func(t *testing.T) { // until it is killed, or the file continue exists
		New(t)
		NewOwned(t)
		must(t, os.WriteFile("ready", nil, 0o600))
		for {
			if _, err := os.Stat("continue"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		New(t).Connect(t) // the template still exists
	})
}
