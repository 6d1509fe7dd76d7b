package db

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// pollInterval is how often an installer looks for the holders of the lock that a step waits for.
	// Its statements give up after the lock_timeout of pins.sql, 500 ms.
	pollInterval = 50 * time.Millisecond
	// maxPause is how long a step waits at most, without a place in a lock queue, for the transactions
	// that hold its lock.
	maxPause = 10 * time.Second
)

// installer is one run of Apply or ApplyProxy. It works in steps, each a transaction that can be
// repeated.
type installer struct {
	conn *pgx.Conn
	log  func(line string)
	pins string // the session's settings
	pid  int32  // of the session's process
}

// execute runs sql as a step. Several statements are one transaction.
func (i *installer) execute(ctx context.Context, name, sql string) error {
	return i.step(ctx, name, func() error {
		_, err := i.conn.Exec(ctx, sql)
		return err
	})
}

// step runs a transaction. While it fails because of a lock, step logs which sessions hold the
// lock, waits for them, and runs it again. The log line begins with name.
func (i *installer) step(ctx context.Context, name string, run func() error) error {
	for {
		// Before each step, because tern resets all settings after a migration.
		if _, err := i.conn.Exec(ctx, i.pins); err != nil {
			return err
		}
		stop := i.watch(ctx)
		err := run()
		found := stop()
		if failedForLock(err) {
			if found.err == nil {
				found.err = err
			}
			i.log(fmt.Sprintf("%s: waiting for a lock that is held by %s", name, found))
			if err = i.pause(ctx, found.transactions); err == nil {
				continue
			}
		}
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s: stopped while it waited for %s: %w", name, found, err)
		}
		return err
	}
}

// failedForLock reports whether a transaction failed because it did not get a lock.
func failedForLock(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == pgerrcode.LockNotAvailable || pgErr.Code == pgerrcode.DeadlockDetected)
}

// holders are the sessions that hold the lock which a step waits for.
type holders struct {
	names        string
	transactions []string // as in pg_locks.virtualtransaction
	err          error    // why they are not known
}

func (h holders) String() string {
	switch {
	case h.names != "":
		return h.names
	case h.err != nil:
		return fmt.Sprintf("another session (%v)", h.err)
	}
	return "another session"
}

//go:embed blockers.sql
var blockersSQL string

// watch finds out which sessions block the step that begins now, on a second connection: when the
// step has failed, its place in the lock queue is gone. It connects only if the step takes long.
// stop ends it and returns what it found last.
func (i *installer) watch(ctx context.Context) (stop func() holders) {
	ctx, cancel := context.WithCancel(ctx)
	var found holders
	look := func() error {
		if err := sleep(ctx, 4*pollInterval); err != nil {
			return err
		}
		conn, err := pgx.ConnectConfig(ctx, i.conn.Config())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		if _, err = conn.Exec(ctx, i.pins); err != nil {
			return err
		}
		for {
			var now holders
			if err := conn.QueryRow(ctx, blockersSQL, i.pid).Scan(&now.names, &now.transactions); err != nil {
				return err
			}
			if now.names != "" {
				found = now
			}
			if err := sleep(ctx, pollInterval); err != nil {
				return err
			}
		}
	}
	var done sync.WaitGroup
	done.Go(func() {
		if err := look(); ctx.Err() == nil {
			found.err = err
		}
	})
	return func() holders {
		cancel()
		done.Wait()
		return found
	}
}

// pause waits until the transactions have ended, at most for maxPause.
func (i *installer) pause(ctx context.Context, transactions []string) error {
	if len(transactions) == 0 { // unknown
		return sleep(ctx, time.Second)
	}
	for end := time.Now().Add(maxPause); time.Now().Before(end); {
		if err := sleep(ctx, pollInterval); err != nil {
			return err
		}
		var held bool
		err := i.conn.QueryRow(ctx, "select exists (select from pg_locks where virtualtransaction = any ($1))", transactions).Scan(&held)
		if err != nil || !held {
			return err
		}
	}
	return nil
}

// sleep returns nil when the time has passed, and the cause if ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
