package main

import (
	"errors"
	"io"
	"text/tabwriter"

	"scalable-coupon-system/bench/race/contestants"
)

// target is a goal for one workload. Most are ratios within one race, because ratios of different
// machines can be compared and absolute figures cannot.
type target struct {
	workload, figure string
	atLeast          bool // bound is a minimum, else a maximum
	bound            float64
	format           string // of fmt
	// measure returns false if a workload or entry that it needs did not run.
	measure func(*results) (float64, bool)
}

// targetResult is a target with what the race measured.
type targetResult struct {
	Workload string  `json:"workload"`
	Figure   string  `json:"figure"`
	Bound    float64 `json:"bound"`
	Measured float64 `json:"measured"`
	Met      bool    `json:"met"`
}

func targets() []target {
	const times, fraction, mib, us = "%.2f ×", "%.3f ×", "%.1f MiB", "%.1f µs"
	p50 := func(f figures) float64 { return f.P50 }
	p99 := func(f figures) float64 { return f.P99 }
	return []target{
		{hotCoupon, "claims/s, relative to interactive", true, 15, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{hotCoupon, "claims/s, relative to Redis everysec", true, 1.1, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, redisEverysec)},
		{hotCoupon, "claims/s, relative to the ceiling", true, 0.45, times, ratio(rate, hotCoupon, contestants.Coupond, hotCoupon, ceiling)},
		{hotCoupon, "p99, relative to interactive", false, 0.1, fraction, ratio(p99, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{hotCoupon, "CPU per claim, service and PostgreSQL", false, 50, us, value(bothCPU, hotCoupon, contestants.Coupond)},
		{hotCoupon, "CPU per claim, relative to interactive", false, 0.065, fraction, ratio(bothCPU, hotCoupon, contestants.Coupond, hotCoupon, interactive)},
		{soldOut, "claims/s, relative to interactive", true, 6, times, ratio(rate, soldOut, contestants.Coupond, soldOut, interactive)},
		{soldOut, "claims/s, relative to Redis everysec", true, 1.3, times, ratio(rate, soldOut, contestants.Coupond, soldOut, redisEverysec)},
		{soldOut, "claims/s, relative to the ceiling", true, 0.6, times, ratio(rate, soldOut, contestants.Coupond, soldOut, ceiling)},
		{manyEvenly, "claims/s, relative to interactive", true, 4, times, ratio(rate, manyEvenly, contestants.Coupond, manyEvenly, interactive)},
		{manyEvenly, "claims/s, relative to the hot coupon", true, 0.85, times, ratio(rate, manyEvenly, contestants.Coupond, hotCoupon, contestants.Coupond)},
		{oneLocked, "p50, relative to none locked", false, 1.2, times, value(lockedRatio, oneLocked, contestants.Coupond)},
		{fourLocked, "p50, relative to none locked", false, 1.3, times, value(lockedRatio, fourLocked, contestants.Coupond)},
		{oneLocked, "claims/s, relative to none locked", true, 0.8, times, value(lockedRate, oneLocked, contestants.Coupond)},
		{fourLocked, "claims/s, relative to none locked", true, 0.8, times, value(lockedRate, fourLocked, contestants.Coupond)},
		{twoInstances, "claims/s, relative to one instance", true, 0.9, times, ratio(rate, twoInstances, inTwo, twoInstances, contestants.Coupond)},
		{onSlowDisk, "claims/s, relative to interactive", true, 45, times, ratio(rate, onSlowDisk, contestants.Coupond, onSlowDisk, interactive)},
		{idleClient, "p50, relative to one call per claim", false, 1.15, times, ratio(p50, idleClient, contestants.Coupond, idleClient, single)},
		{idleClient, "p50, relative to the plain function", false, 1, times, ratio(p50, idleClient, contestants.Coupond, idleClient, plain)},
		{manyClients, "claims/s, relative to 128 connections", true, 0.95, times, ratio(rate, manyClients, contestants.Coupond, manyClients, with128)},
		{manyClients, "rounds with unexpected answers", false, 0, "%.0f", unexpectedRounds(manyClients)},
		{openSnapshot, "claims/s, relative to no dump", true, 0.8, times, ratio(rate, openSnapshot, contestants.Coupond, openSnapshot, withoutDump)},
		{readsInSale, "reads/s, relative to one call per read", true, 5, times, ratio(readRate, readsInSale, contestants.Coupond, readsInSale, single)},
		{oneMillionRead, "added memory", false, 16, mib, value(func(f figures) float64 { return f.AddedMemory }, oneMillionRead, contestants.Coupond)},
		{oneMillionRead, "time, relative to psql's COPY", false, 2, times, value(func(f figures) float64 { return f.CopyRatio }, oneMillionRead, contestants.Coupond)},
		{oneMillionRead, "claims/s, relative to no reads", true, 0.75, times, ratio(rate, oneMillionRead, contestants.Coupond, oneMillionRead, noReads)},
		{oldPlans, "time, relative to a fresh session", false, 1.2, times, ratio(rate, oldPlans, freshSession, oldPlans, contestants.Coupond)},
		{tenMillion, "claims/s, relative to empty tables", true, 0.95, times, ratio(rate, tenMillion, contestants.Coupond, tenMillion, emptyTables)},
	}
}

func bothCPU(f figures) float64 { return f.ServiceCPU + f.DatabaseCPU }

// lockedRatio is how many times as long the median claim took as with no coupon locked.
func lockedRatio(f figures) float64 {
	if f.FreeP50 == 0 {
		return 0
	}
	return f.P50 / f.FreeP50
}

// lockedRate shows what the median may hide: when all clients wait at once, most answers are those
// between two such waits.
func lockedRate(f figures) float64 {
	if f.FreeRate == 0 {
		return 0
	}
	return f.Rate / f.FreeRate
}

func readRate(f figures) float64 { return f.ReadRate }

// value measures the median of a figure of one entry.
func value(figure func(figures) float64, workload, entry string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		middle, _ := median(r.Runs[workload][entry], figure)
		return middle, middle != 0
	}
}

// ratio measures the median of a figure of one entry, divided by that of another entry.
func ratio(figure func(figures) float64, workload, entry, otherWorkload, otherEntry string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		a, okA := value(figure, workload, entry)(r)
		b, okB := value(figure, otherWorkload, otherEntry)(r)
		if !okA || !okB {
			return 0, false
		}
		return a / b, true
	}
}

// unexpectedRounds counts the rounds in which coupond returned an unexpected answer.
func unexpectedRounds(workload string) func(*results) (float64, bool) {
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

// evaluateTargets compares the figures with the targets, keeps the result in r.Targets and writes
// it as a table.
func (r *results) evaluateTargets(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := &printer{w: table}
	r.Targets = nil
	for _, t := range targets() {
		measured, ran := t.measure(r)
		if !ran {
			continue
		}
		if len(r.Targets) == 0 {
			p.printf("\ntargets\t\t\tmeasured\t\n")
		}
		sign, met, outcome := "≤", measured <= t.bound, "missed"
		if t.atLeast {
			sign, met = "≥", measured >= t.bound
		}
		if met {
			outcome = "met"
		}
		p.printf("%s\t%s\t%s "+t.format+"\t"+t.format+"\t%s\n", t.workload, t.figure, sign, t.bound, measured, outcome)
		r.Targets = append(r.Targets, targetResult{t.workload, t.figure, t.bound, measured, met})
	}
	return errors.Join(p.err, table.Flush())
}
