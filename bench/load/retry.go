package load

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry decides about a retry as a well-behaved client does: it repeats a request until its answer
// is definite, not before Retry-After, and with back-off and jitter. It is the usual result of
// [Plan].Answered.
func Retry(answer Answer, r Response) (again bool, pause time.Duration) {
	const shortest, longest = 25 * time.Millisecond, 400 * time.Millisecond
	backOff := min(shortest<<min(max(r.Attempt, 1)-1, 10), longest)
	return !answer.Definite(), r.RetryAfter + backOff/2 + rand.N(backOff)
}

// UntilDefinite calls send until the answer is definite or ctx ends, with pauses as in [Retry]. It
// returns the last answer.
func UntilDefinite(ctx context.Context, send func() (Answer, Response)) (Answer, Response) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for attempt := 1; ; attempt++ {
		answer, response := send()
		response.Attempt = attempt
		again, pause := Retry(answer, response)
		if !again {
			return answer, response
		}
		sleep(ctx, timer, pause)
		if ctx.Err() != nil {
			return answer, response
		}
	}
}
