package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// withRowLocks returns the names of the contestants with coupons that a transaction can lock.
func withRowLocks() []string {
	var names []string
	for _, c := range contestants.All() {
		if c.Table != "" {
			names = append(names, c.Name)
		}
	}
	return names
}

// besideLocked returns a runner that claims 51 coupons, first all of them free, then while a
// transaction holds the rows of n. The figures are those of the others' claims. A few clients of
// their own claim the n coupons, so that waiting for a lock does not use up the clients measured.
func besideLocked(n int) runner {
	return func(ctx context.Context, r *race, s *service) (figures, error) {
		free, err := r.runBeside(ctx, s, n, func(context.Context, []string) (func() error, error) {
			return func() error { return nil }, nil
		})
		if err != nil {
			return figures{}, err
		}
		f, err := r.runBeside(ctx, s, n, func(ctx context.Context, coupons []string) (func() error, error) {
			return r.machine.lock(ctx, s, coupons)
		})
		f.FreeRate, f.FreeP50 = free.Rate, free.P50
		f.Unexpected += free.Unexpected
		return f, err
	}
}

const (
	besideCoupons = 51 // with those to lock
	// Clients of a coupon to lock, and their claims per second while it is free: its share of a
	// moderate load.
	lockedClients = 2
	lockedClaims  = 20
	// untilWaiting is how long they claim before the measurement, so that it does not begin before
	// the first of them waits for a lock.
	untilWaiting = 500 * time.Millisecond
)

// runBeside claims new coupons for r.duration. lock is called with the names of n of them, and
// returns a function that unlocks them.
func (r *race) runBeside(ctx context.Context, s *service, n int, lock func(context.Context, []string) (func() error, error)) (figures, error) {
	coupons := make([]string, besideCoupons)
	for i := range coupons {
		var err error
		if coupons[i], err = r.create(ctx, s, plenty); err != nil {
			return figures{}, err
		}
	}
	locked, others := coupons[:n], coupons[n:]
	unlock, err := lock(ctx, locked)
	if err != nil {
		return figures{}, err
	}

	waiting, stop := context.WithCancel(ctx)
	defer stop()
	waiters, err := load.Start(waiting, load.Plan{
		Address: s.client.Address, Connections: lockedClients * n, Rate: float64(lockedClaims * n), Timeout: serviceTimeout, Seed: r.seed,
		Request: func(i int) load.Request { return load.Request{User: r.users[i%claimers], Coupon: locked[i%n]} },
	})
	if err != nil {
		return figures{}, errors.Join(err, unlock())
	}
	time.Sleep(untilWaiting)
	// The lock ends with the load, because the last claims may wait for it.
	unlocked := make(chan error, 1)
	time.AfterFunc(r.duration, func() {
		stop()
		unlocked <- unlock()
	})
	which := load.Evenly(manyRequests, len(others), r.seed)
	f, report, err := r.run(ctx, s, load.Plan{Request: func(i int) load.Request {
		return load.Request{User: r.users[i%claimers], Coupon: others[which[i%manyRequests]]}
	}}, r.duration, load.Claimed)
	err = errors.Join(err, <-unlocked)
	waited := waiters.Wait()
	if err != nil {
		return f, err
	}
	for _, count := range waited.Claims.Answers {
		switch count.Answer {
		case load.Claimed, load.Unavailable, load.Overloaded:
		default:
			f.Unexpected += fmt.Sprintf("%d × %v for a locked coupon ", count.Times, count.Answer)
		}
	}
	return f, errors.Join(r.check(ctx, s, plenty, report, others...), r.check(ctx, s, plenty, waited, locked...))
}

// lock locks coupons of a service, as a psql session with a forgotten transaction does, until
// unlock is called.
func (m *machine) lock(ctx context.Context, s *service, coupons []string) (unlock func() error, err error) {
	table := "coupond.coupons"
	if c, err := contestants.Find(s.contestant); err == nil {
		table = c.Table
	}
	psql, err := pgx.Connect(ctx, m.postgres.URL(s.database))
	if err != nil {
		return nil, err
	}
	unlock = func() error { return psql.Close(context.WithoutCancel(ctx)) }
	tx, err := psql.Begin(ctx)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	tag, err := tx.Exec(ctx, "select from "+table+" where name = any($1) for update", coupons)
	if err == nil && tag.RowsAffected() != int64(len(coupons)) {
		err = fmt.Errorf("%s has not all of %s", table, strings.Join(coupons, ", "))
	}
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}
