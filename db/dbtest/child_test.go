package dbtest

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestChild holds the tests that other tests here run in a process of their own (see pkg). By itself it is empty.
func TestChild(t *testing.T) {
	tests := map[string]func(*testing.T){ //nolint:thelper // tests they are
		"none":    func(*testing.T) {},
		"passing": func(t *testing.T) { New(t).Connect(t) },
		"failing": func(t *testing.T) {
			database := New(t)
			_, err := database.Connect(t).Exec(t.Context(), "create table public.evidence as select 'seen' as value")
			must(t, err)
			t.Error("a failure")
		},
		"failing_owner": func(t *testing.T) { Owner(t); t.Error("a failure") },
		"panicking":     func(t *testing.T) { New(t); panic("a test that panics") },
		"private":       func(t *testing.T) { Private(t, map[string]string{"fsync": "off"}).New(t); t.Error("a failure") },
		"many": func(t *testing.T) {
			for i := range 10 {
				t.Run(strconv.Itoa(i), func(t *testing.T) {
					t.Parallel()
					create(t, New(t), "the same name everywhere")
					Owner(t).Connect(t)
				})
			}
		},
		"holding": func(t *testing.T) { // until it is killed, or told to go on
			New(t)
			Owner(t)
			must(t, os.WriteFile("holds", nil, 0o600))
			for {
				if _, err := os.Stat("go on"); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			New(t).Connect(t) // the template is still there
		},
	}
	name := os.Getenv(childVariable)
	if name == "" {
		return
	}
	t.Run(name, tests[name])
}
