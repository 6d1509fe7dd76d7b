package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/load"
)

// number writes 50,000.
func number(n int) string { return humanize.Comma(int64(n)) }

// latency writes a time to three digits, in milliseconds where that is readable.
func latency(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 9.995:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 99.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

// latencies writes the quantiles that people ask for.
func latencies(t load.Tally) string {
	return fmt.Sprintf("p50 %s   p99 %s   p99.9 %s", quantile(t, 50), quantile(t, 99), quantile(t, 99.9))
}

func quantile(t load.Tally, percent float64) string {
	if t.Latency == nil || t.Latency.TotalCount() == 0 {
		return "–"
	}
	return latency(t.Quantile(percent))
}

// times writes "1 user", "2 users".
func times(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return number(n) + " " + what + "s"
}

// describe says in one line what the sale is.
func (o *options) describe() string {
	s := times(o.users, "user")
	if o.repeats > 0 {
		s += " (" + strconv.FormatFloat(o.repeats, 'g', -1, 64) + " % twice)"
	}
	s += " for " + times(o.stock, "coupon") + " · " + times(o.connections, "connection") + " · "
	if o.rate > 0 {
		return s + humanize.CommafWithDigits(o.rate, 2) + " a second"
	}
	return s + "all at once"
}
