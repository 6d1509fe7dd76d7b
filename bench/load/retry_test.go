package load

import (
	"context"
	"testing"
	"time"
)

func TestRetry(t *testing.T) {
	for attempt := range 100 {
		again, pause := Retry(OutcomeUnknown, Response{Attempt: attempt, RetryAfter: time.Second})
		if backOff := pause - time.Second; !again || backOff < 12*time.Millisecond || backOff > 600*time.Millisecond || attempt > 5 && backOff < 200*time.Millisecond {
			t.Errorf("attempt %d: %v, a back-off of %v", attempt, again, backOff)
		}
	}
	if again, _ := Retry(OutOfStock, Response{Attempt: 1}); again {
		t.Error("a retry after a definite answer")
	}
}

func TestUntilDefinite(t *testing.T) {
	answers := []Answer{Overloaded, Cut, Claimed, AlreadyClaimed}
	next := 0
	answer, r := UntilDefinite(t.Context(), func() (Answer, Response) {
		next++
		return answers[next-1], Response{Status: next}
	})
	if answer != Claimed || r.Status != 3 || r.Attempt != 3 {
		t.Errorf("%v, %+v, want the third answer", answer, r)
	}

	ctx, cancel := context.WithCancel(t.Context())
	answer, r = UntilDefinite(ctx, func() (Answer, Response) { cancel(); return Unavailable, Response{RetryAfter: time.Hour} })
	if answer != Unavailable || r.Attempt != 1 {
		t.Errorf("%v, %+v, want the first answer", answer, r)
	}
}
