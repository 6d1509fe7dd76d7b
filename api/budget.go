package api

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"scalable-coupon-system/pgstore"
)

// defaultMaxInFlight is the default of Options.MaxInFlight.
const defaultMaxInFlight = 256 << 20

// freeSize is the largest request body or response, in bytes, that needs no budget. The buffers
// that net/http has for each connection are as large. So claims and small coupons are served
// while slow clients hold the whole budget.
const freeSize = 2 << 10

// errOverBudget rejects a request that would exceed the budget.
var errOverBudget = errors.New("the memory for bodies and responses in flight is used up")

// budget bounds the memory that request bodies and responses in flight take, however many clients
// send or read slowly. Nothing waits for it: a request that would exceed it is answered OVERLOADED.
type budget struct {
	limit int64 // bytes
	used  atomic.Int64
}

// take takes n bytes, or returns errOverBudget and takes none.
func (b *budget) take(n int) error { return b.resize(0, n) }

// give returns the n bytes of a take.
func (b *budget) give(n int) { _ = b.resize(n, 0) }

// resize changes from one size to another. If the budget has no room for that, it returns
// errOverBudget and changes nothing.
func (b *budget) resize(from, to int) error {
	change := counted(to) - counted(from)
	if change == 0 { // most requests
		return nil
	}
	for {
		used := b.used.Load()
		if change > 0 && used+change > b.limit {
			return errOverBudget
		}
		if b.used.CompareAndSwap(used, used+change) {
			return nil
		}
	}
}

func counted(size int) int64 {
	if size <= freeSize {
		return 0
	}
	return int64(size)
}

// sharedBodies encodes coupons once for all requests that hold the same *pgstore.Coupon at the same
// time. The budget counts a shared body once.
type sharedBodies struct {
	budget *budget

	mu   sync.Mutex
	held map[*pgstore.Coupon]*sharedBody
}

// sharedBody is the encoded form of a coupon that has all claimers in memory.
type sharedBody struct {
	holders int // guarded by sharedBodies.mu

	once    sync.Once // guards the fields below
	encoded []byte
	size    int // of the coupon and of its encoded form; taken from the budget
	err     error
}

// hold returns the encoded form of c, which must be Whole. The caller calls release when it no
// longer uses it, also after an error.
func (s *sharedBodies) hold(c *pgstore.Coupon) ([]byte, error) {
	s.mu.Lock()
	body := s.held[c]
	if body == nil {
		body = new(sharedBody)
		s.held[c] = body
	}
	body.holders++
	s.mu.Unlock()

	body.once.Do(func() {
		users, _ := c.Whole()
		encodedSize := couponSize(c, users)
		body.size = encodedSize + pageSize(users)
		if body.err = s.budget.take(body.size); body.err == nil {
			body.encoded = encodeCoupon(make([]byte, 0, encodedSize), c, users)
		}
	})
	return body.encoded, body.err
}

// release ends a hold of c.
func (s *sharedBodies) release(c *pgstore.Coupon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body := s.held[c]
	body.holders--
	if body.holders > 0 {
		return
	}
	delete(s.held, c)
	if body.err == nil {
		s.budget.give(body.size)
	}
}

// pageSize returns the memory that a page of user ids takes.
func pageSize(users []string) int {
	size := len(users) * int(unsafe.Sizeof(""))
	for _, user := range users {
		size += len(user)
	}
	return size
}
