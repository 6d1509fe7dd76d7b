package main

import (
	"time"

	"scalable-coupon-system/bench/load"
)

// tick is how often the show looks.
const tick = 100 * time.Millisecond

// maxPoints is more than a terminal or a picture has room for. When there are more, neighbours become one, so that a
// long sale needs no more memory (and no more ink) than a short one, and every quantile stays exact.
const maxPoints = 120

// series is the sale over time.
type series struct {
	points  []load.Report
	perTick int // ticks in a point
	filled  int // ticks in the last point
	total   [kinds]int
	elapsed time.Duration
	last    []load.Report // ticks of the last second
}

// progress is how far the sale has come.
type progress struct {
	requests, settled int
	series            *series
}

func (s *series) add(r load.Report) {
	s.elapsed += r.Elapsed
	for k, n := range byKind(r.Claims) {
		s.total[k] += n
	}
	s.last = append(s.last, r)
	if len(s.last) > int(time.Second/tick) {
		s.last = append(s.last[:0], s.last[1:]...)
	}

	// On a busy machine a late tick is followed by an early one; alone, the few milliseconds between them would make a
	// rate out of nothing.
	if s.filled > 0 && r.Elapsed < tick/2 {
		s.points[len(s.points)-1].Add(r)
		return
	}
	if s.filled > 0 && s.filled < s.perTick {
		s.points[len(s.points)-1].Add(r)
		s.filled++
		return
	}
	var point load.Report
	point.Add(r) // a copy: more may be added to it, and r is in last as well
	s.points, s.filled = append(s.points, point), 1
	s.perTick = max(s.perTick, 1)
	if len(s.points) > maxPoints {
		s.halve()
	}
}

// halve makes one point of two. There is one more than maxPoints, an even number, so the newest stays alone; it goes on
// being filled.
func (s *series) halve() {
	half := s.points[:0]
	for i := 0; i < maxPoints; i += 2 {
		point := s.points[i]
		point.Add(s.points[i+1])
		half = append(half, point)
	}
	half = append(half, s.points[maxPoints])
	clear(s.points[len(half):])
	s.points, s.perTick = half, 2*s.perTick
}

// second is the last second as one report.
func (s *series) second() load.Report {
	var r load.Report
	for _, t := range s.last {
		r.Add(t)
	}
	return r
}

// rates is how many claims a second were answered over time, in at most width parts.
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
