package main

import (
	"time"

	"scalable-coupon-system/bench/load"
)

// tick is how often the progress is updated.
const tick = 100 * time.Millisecond

// maxPoints bounds a series. Beyond it neighbouring points are merged, so that a long sale needs no
// more memory than a short one. Quantiles stay exact.
const maxPoints = 120

// series is the course of a sale over time.
type series struct {
	points        []load.Report
	ticksPerPoint int // ticks in each point but the last
	filled        int // ticks in the last point
	total         [kinds]int
	elapsed       time.Duration
	last          []load.Report // the ticks of the last second
}

// progress is the state of a running sale, for display.
type progress struct {
	requests, finished int
	series             *series
}

func (s *series) add(r load.Report) {
	s.elapsed += r.Elapsed
	for k, n := range countByKind(r.Claims) {
		s.total[k] += n
	}
	s.last = append(s.last, r)
	if len(s.last) > int(time.Second/tick) {
		s.last = append(s.last[:0], s.last[1:]...)
	}

	// On a busy machine a late tick is followed by an early one, which alone is too short to
	// compute a rate from.
	if s.filled > 0 && r.Elapsed < tick/2 {
		s.points[len(s.points)-1].Add(r)
		return
	}
	if s.filled > 0 && s.filled < s.ticksPerPoint {
		s.points[len(s.points)-1].Add(r)
		s.filled++
		return
	}
	var point load.Report
	point.Add(r) // a copy: the point may grow, and r is also in last
	s.points, s.filled = append(s.points, point), 1
	s.ticksPerPoint = max(s.ticksPerPoint, 1)
	if len(s.points) > maxPoints {
		s.halve()
	}
}

// halve merges pairs of points. There are maxPoints (an even number) and one more: the newest,
// which is not merged, because it is not full yet.
func (s *series) halve() {
	half := s.points[:0]
	for i := 0; i < maxPoints; i += 2 {
		point := s.points[i]
		point.Add(s.points[i+1])
		half = append(half, point)
	}
	half = append(half, s.points[maxPoints])
	clear(s.points[len(half):])
	s.points, s.ticksPerPoint = half, 2*s.ticksPerPoint
}

// lastSecond returns the report of the last second.
func (s *series) lastSecond() load.Report {
	var r load.Report
	for _, t := range s.last {
		r.Add(t)
	}
	return r
}

// rates returns the claims answered per second over time, as at most width values.
func (s *series) rates(width int) []float64 {
	if width < 1 {
		return nil
	}
	group := (len(s.points) + width - 1) / width
	var rates []float64
	for i := 0; i < len(s.points); i += group {
		n, elapsed := 0, time.Duration(0)
		for _, p := range s.points[i:min(i+group, len(s.points))] {
			n += p.Claims.Answered()
			elapsed += p.Elapsed
		}
		rates = append(rates, rate(n, elapsed))
	}
	return rates
}

func rate(n int, elapsed time.Duration) float64 {
	if elapsed <= 0 {
		return 0
	}
	return float64(n) / elapsed.Seconds()
}
