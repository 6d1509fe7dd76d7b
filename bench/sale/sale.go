package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// sale is one flash sale: its requests, the answers so far, and their course over time.
type sale struct {
	options  options
	coupon   string // its name
	users    []string
	order    []int32 // index of the user, by request
	checker  *check.Checker
	finished atomic.Int64
	run      *load.Run
	series   series
}

// newSale prepares a sale of a new coupon, so that it can start as soon as the coupon exists.
func newSale(o options) *sale {
	coupon, users := time.Now().Format("sale-20060102-150405.000"), load.Users(o.Users)
	return &sale{
		options: o, coupon: coupon, users: users, order: load.Order(o.Users, repeats, 1), checker: check.New(coupon, o.Stock, users),
		series: series{interval: tick},
	}
}

func (s *sale) start(ctx context.Context) error {
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		Address:     s.options.address,
		Connections: min(s.options.Connections, len(s.order)),
		Requests:    len(s.order),
		Request:     func(i int) load.Request { return load.Request{User: s.users[s.order[i]], Coupon: s.coupon} },
		Rate:        s.options.Rate,
		Timeout:     s.options.Timeout,
		Answered:    s.answered,
	})
	return err
}

// answered records an answer and decides about a retry.
func (s *sale) answered(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
	s.checker.Record(s.users[s.order[i]], answer, r.Sent, r.Answered)
	again, pause = load.Retry(answer, r)
	if answer.Ambiguous() && !slices.Contains([]load.Answer{load.OutcomeUnknown, load.Cut, load.TimedOut}, answer) && r.Attempt >= 3 {
		again = false // the check has failed, and a broken service would be asked until the end of the sale
	}
	if !again {
		s.finished.Add(1)
	}
	return again, pause
}

// row is an answer as it is displayed.
type row struct {
	answer load.Answer
	name   string
	// One of the terminal's own sixteen colours, so that it fits the theme, and the colour in the
	// chart.
	colour, fill string
}

const green, red = "2", "1"

// rows returns the usual answers, and then the others that came.
func rows(answers load.Answers) []row {
	all := []row{
		{load.Claimed, "201 claimed", green, "#2da44e"},
		{load.AlreadyClaimed, "409 already claimed", "3", "#d4a72c"},
		{load.OutOfStock, "400 out of stock", "8", "#afb8c1"},
	}
	fills := []string{"#cf222e", "#8250df", "#bf3989", "#bc4c00"}
	for _, answer := range answers.Sorted() {
		if !slices.ContainsFunc(all, func(r row) bool { return r.answer == answer }) {
			all = append(all, row{answer, answer.String(), red, fills[len(all)%len(fills)]})
		}
	}
	return all
}

// tick is how often the progress is updated.
const tick = 100 * time.Millisecond

// maxPoints bounds a series (an even number). Neighbouring points are merged then, so that a long
// sale needs no more memory than a short one. Quantiles stay exact.
const maxPoints = 120

// series is the course of a sale over time.
type series struct {
	points   []load.Report
	interval time.Duration // of a point, at least about this
	all      load.Report
}

// add adds the answers of a tick.
func (s *series) add(r load.Report) {
	s.all.Add(r)
	// The last tick may be too short to compute a rate from.
	if n := len(s.points); n > 0 && s.points[n-1].Elapsed < s.interval-tick/2 {
		s.points[n-1].Add(r)
		return
	}
	if len(s.points) == maxPoints {
		s.points, s.interval = s.merged(2), 2*s.interval
	}
	s.points = append(s.points, r)
}

// merged returns the points in groups of this size.
func (s *series) merged(size int) (groups []load.Report) {
	for group := range slices.Chunk(s.points, size) {
		var r load.Report
		for _, p := range group {
			r.Add(p)
		}
		groups = append(groups, r)
	}
	return groups
}

// lastSecond returns the report of the last second, or of the last point if that is longer.
func (s *series) lastSecond() (r load.Report) {
	for i := len(s.points) - 1; i >= 0 && r.Elapsed < time.Second-tick/2; i-- {
		r.Add(s.points[i])
	}
	return r
}

// rates returns the claims answered per second over time, as at most width values.
func (s *series) rates(width int) (rates []float64) {
	for _, p := range s.merged(1 + len(s.points)/max(1, width)) {
		rates = append(rates, rate(p))
	}
	return rates
}

// rate returns the claims answered per second.
func rate(r load.Report) float64 {
	return float64(r.Answered()) / max(r.Elapsed, time.Nanosecond).Seconds()
}
