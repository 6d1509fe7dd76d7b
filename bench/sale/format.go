package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/load"
)

// formatInt returns "50,000".
func formatInt(n int) string { return humanize.Comma(int64(n)) }

// formatLatency returns a time with three digits, in milliseconds below a second.
func formatLatency(d time.Duration) string {
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

// formatLatencies returns the usual quantiles.
func formatLatencies(t load.Tally) string {
	return fmt.Sprintf("p50 %s   p99 %s   p99.9 %s", formatQuantile(t, 50), formatQuantile(t, 99), formatQuantile(t, 99.9))
}

func formatQuantile(t load.Tally, percent float64) string {
	if t.Latency == nil || t.Latency.TotalCount() == 0 {
		return "–"
	}
	return formatLatency(t.Quantile(percent))
}

// formatCount returns "1 user", "2 users".
func formatCount(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return formatInt(n) + " " + noun + "s"
}

// describe returns the sale in one line.
func (o *options) describe() string {
	s := formatCount(o.users, "user")
	if o.repeats > 0 {
		s += " (" + strconv.FormatFloat(o.repeats, 'g', -1, 64) + " % twice)"
	}
	s += " for " + formatCount(o.stock, "coupon") + " · " + formatCount(o.connections, "connection") + " · "
	if o.rate > 0 {
		return s + humanize.CommafWithDigits(o.rate, 2) + " per second"
	}
	return s + "all at once"
}
