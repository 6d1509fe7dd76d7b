package load

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// arrivals gives out the next request and the time when it is due. All connections share it, so a
// request goes to the connection that is free first.
type arrivals struct {
	mu      sync.Mutex
	next    int       // number of the next new request
	total   int       // number of new requests; 0: no end
	retries []arrival // by due

	rate float64    // new requests per second; 0: due as soon as a connection is free
	gaps *rand.Rand // between new requests at a rate: exponential, as for independent users
	due  time.Time  // when the next new request at a rate is due
}

func newArrivals(total int, rate float64, seed uint64) *arrivals {
	a := &arrivals{total: total, rate: rate, gaps: rand.New(rand.NewPCG(seed, 0x5a1e))}
	if rate > 0 {
		a.due = time.Now().Add(a.gap())
	}
	return a
}

func (a *arrivals) gap() time.Duration {
	return time.Duration(a.gaps.ExpFloat64() / a.rate * float64(time.Second))
}

// take returns the next arrival. It returns false when all remaining requests are in flight on
// other connections, which take their own retries.
func (a *arrivals) take() (next arrival, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	hasNew := a.total == 0 || a.next < a.total
	if len(a.retries) > 0 {
		first := a.retries[0]
		// In a closed loop a new request is due now, so only a retry that is due goes before it.
		if !hasNew || a.rate > 0 && first.due.Before(a.due) || a.rate == 0 && !first.due.After(time.Now()) {
			a.retries = a.retries[1:]
			return first, true
		}
	}
	if !hasNew {
		return arrival{}, false
	}
	next = arrival{request: a.next, attempt: 1, due: a.due}
	a.next++
	if a.rate > 0 {
		a.due = a.due.Add(a.gap())
	}
	return next, true
}

// retry makes a request due once more.
func (a *arrivals) retry(again arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, _ := slices.BinarySearchFunc(a.retries, again, func(a, b arrival) int { return a.due.Compare(b.due) })
	a.retries = slices.Insert(a.retries, at, again)
}

// arrival is an attempt to send a request.
type arrival struct {
	request int
	attempt int       // counted from 1
	due     time.Time // zero: now
}
