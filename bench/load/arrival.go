package load

import (
	"container/heap"
	"math/rand/v2"
	"sync"
	"time"
)

// arrivals hands out which request comes next and when it is due. It is the one thing all connections share, so that a
// request waits for whichever connection is free first.
type arrivals struct {
	mu    sync.Mutex
	next  int // the request that arrives next
	total int // how many there are; 0: no end
	again againHeap

	rate float64    // a second; 0: whenever a connection is free
	gaps *rand.Rand // between arrivals at a rate: exponential, as of a crowd whose members do not know each other
	due  time.Time  // of the next arrival at a rate
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

// take returns a request and when it is due, the zero time meaning at once. It returns false when nothing is left but
// what other connections are busy with; whoever is busy takes care of its own repetition.
func (a *arrivals) take() (i int, due time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fresh := a.total == 0 || a.next < a.total
	if len(a.again) > 0 {
		first := a.again[0]
		// In a closed loop a fresh request is due already, so only a repetition whose pause is over goes before it.
		if !fresh || a.rate > 0 && first.due.Before(a.due) || a.rate == 0 && !first.due.After(time.Now()) {
			heap.Pop(&a.again)
			return first.request, first.due, true
		}
	}
	if !fresh {
		return 0, time.Time{}, false
	}
	i, due = a.next, a.due
	a.next++
	if a.rate > 0 {
		a.due = a.due.Add(a.gap())
	}
	return i, due, true
}

// repeat has request i taken once more when due.
func (a *arrivals) repeat(i int, due time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	heap.Push(&a.again, repetition{i, due})
}

type repetition struct {
	request int
	due     time.Time
}

type againHeap []repetition

func (h againHeap) Len() int           { return len(h) }
func (h againHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h againHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *againHeap) Push(x any)        { *h = append(*h, x.(repetition)) }
func (h *againHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
