package main

import (
	"errors"
	"io"
	"text/tabwriter"

	"scalable-coupon-system/bench/race/contestants"
)

// target is what the project set out to reach in one workload, nearly always as a ratio within one race: figures of
// different machines cannot be compared, ratios can.
type target struct {
	work, what string
	least      bool // measured must be at least the bound; else at most
	bound      float64
	form       string
	// measured is false when what it needs did not run.
	measured func(*results) (float64, bool)
}

// verdict is a target after a race.
type verdict struct {
	Work     string  `json:"work"`
	Target   string  `json:"target"`
	Bound    float64 `json:"bound"`
	Measured float64 `json:"measured"`
	Met      bool    `json:"met"`
}

func targets() []target {
	const times, share, mib, us = "%.2f ×", "%.3f ×", "%.1f MiB", "%.1f µs"
	p50 := func(f figures) float64 { return f.P50 }
	p99 := func(f figures) float64 { return f.P99 }
	return []target{
		{hotCoupon, "claims/s, interactive's", true, 15, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{hotCoupon, "claims/s, Redis everysec's", true, 1.1, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, redisEverysec)},
		{hotCoupon, "claims/s, the ceiling's", true, 0.45, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, ceiling)},
		{hotCoupon, "p99, interactive's", false, 0.1, share, ratio(p99, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{hotCoupon, "CPU a claim, service and PostgreSQL", false, 50, us, value(bothCPU, hotCoupon, contestants.Coupond)},
		{hotCoupon, "CPU a claim, interactive's", false, 0.065, share, ratio(bothCPU, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{soldOut, "claims/s, interactive's", true, 6, times, ratio(rate, soldOut, contestants.Coupond, soldOut, interactive)},
		{soldOut, "claims/s, Redis everysec's", true, 1.3, times, ratio(rate, soldOut, contestants.Coupond, soldOut, redisEverysec)},
		{soldOut, "claims/s, the ceiling's", true, 0.6, times, ratio(rate, soldOut, contestants.Coupond, soldOut, ceiling)},
		{manyEvenly, "claims/s, interactive's", true, 4, times, ratio(rate, manyEvenly, contestants.Coupond, manyEvenly, interactive)},
		{manyEvenly, "claims/s, the hot coupon's", true, 0.85, times, ratio(rate, manyEvenly, contestants.Coupond, hotCoupon, contestants.Coupond)},
		{onSlowDisk, "claims/s, interactive's", true, 45, times, ratio(rate, onSlowDisk, contestants.Coupond, onSlowDisk, interactive)},
		{idleClient, "p50, a direct call's", false, 1.15, times, ratio(p50, idleClient, contestants.Coupond, idleClient, single)},
		{manyClients, "claims/s, that of 128 connections", true, 0.95, times, ratio(rate, manyClients, contestants.Coupond, manyClients, with128)},
		{manyClients, "rounds with an error", false, 0, "%.0f", errorsIn(manyClients)},
		{openSnapshot, "claims/s, without a dump", true, 0.8, times, ratio(rate, openSnapshot, contestants.Coupond, openSnapshot, withoutDump)},
		{readsInSale, "reads/s, one query a request's", true, 5, times, ratio(readRate, readsInSale, contestants.Coupond, readsInSale, single)},
		{oneMillionRead, "more memory", false, 16, mib, value(func(f figures) float64 { return f.MoreMemory }, oneMillionRead, contestants.Coupond)},
		{oneMillionRead, "time, psql's COPY's", false, 2, times, value(func(f figures) float64 { return f.CopyTimes }, oneMillionRead, contestants.Coupond)},
		{oneMillionRead, "other claims/s, without the GET", true, 0.75, times, ratio(rate, oneMillionRead, contestants.Coupond, oneMillionRead, nobodyReads)},
		{oldPlans, "time, a fresh session's", false, 1.2, times, ratio(rate, oldPlans, freshSession, oldPlans, contestants.Coupond)},
		{tenMillion, "claims/s, empty tables'", true, 0.95, times, ratio(rate, tenMillion, contestants.Coupond, tenMillion, emptyTables)},
	}
}

func bothCPU(f figures) float64  { return f.ServiceCPU + f.DataCPU }
func readRate(f figures) float64 { return f.ReadRate }

// value is the median of a figure.
func value(of func(figures) float64, workload, contestant string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		middle, _ := median(r.Runs[workload][contestant], of)
		return middle, middle != 0
	}
}

// ratio is the median of a figure of one contestant, divided by that of another.
func ratio(of func(figures) float64, workload, contestant, otherWorkload, other string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		a, some := value(of, workload, contestant)(r)
		b, more := value(of, otherWorkload, other)(r)
		if !some || !more {
			return 0, false
		}
		return a / b, true
	}
}

// errorsIn counts the rounds in which ours gave an answer that it should not.
func errorsIn(workload string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		n := 0
		for _, f := range r.Runs[workload][contestants.Coupond] {
			if f.Unexpected != "" {
				n++
			}
		}
		return float64(n), len(r.Runs[workload][contestants.Coupond]) > 0
	}
}

// judge compares what was measured with the targets, and writes the table of it.
func (r *results) judge(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := &printer{w: table}
	r.Targets = nil
	for _, t := range targets() {
		measured, ran := t.measured(r)
		if !ran {
			continue
		}
		if len(r.Targets) == 0 {
			p.printf("\ntargets\t\t\tmeasured\t\n")
		}
		sign, met, word := "≤", measured <= t.bound, "missed"
		if t.least {
			sign, met = "≥", measured >= t.bound
		}
		if met {
			word = "met"
		}
		p.printf("%s\t%s\t%s "+t.form+"\t"+t.form+"\t%s\n", t.work, t.what, sign, t.bound, measured, word)
		r.Targets = append(r.Targets, verdict{t.work, t.what, t.bound, measured, met})
	}
	return errors.Join(p.err, table.Flush())
}
