package db

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// defaultLockTimeout is how long a statement waits for a lock. Claims that need a conflicting lock
// wait behind it, so it is below the service's own lock_timeout (750 ms by default).
const defaultLockTimeout = 500 * time.Millisecond

// maxPause is how long a step waits at most, without a place in a lock queue, for the transactions
// that hold its lock.
const maxPause = 10 * time.Second

//go:embed pins.sql
var pinsSQL string

func pinsScript(lockTimeout time.Duration) (string, error) {
	return execute(pinsSQL, map[string]any{"LockTimeout": lockTimeout.Milliseconds()})
}

// installer is one run of Apply or ApplyProxy. It works in steps, each a transaction that can be
// repeated.
type installer struct {
	conn        *pgx.Conn
	log         func(line string)
	lockTimeout time.Duration
	pid         int32 // of the session's process
	locked      bool  // the session holds applyLock
}

func newInstaller(conn *pgx.Conn, options Options) *installer {
	i := &installer{conn: conn, log: options.Log, lockTimeout: options.lockTimeout}
	if i.log == nil {
		i.log = func(string) {}
	}
	if i.lockTimeout == 0 {
		i.lockTimeout = defaultLockTimeout
	}
	return i
}

// close releases the lock and resets the session. It fails only if the connection is lost, which
// releases the lock, too.
func (i *installer) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), i.lockTimeout)
	defer cancel()
	if i.locked {
		_, _ = i.conn.Exec(ctx, "select pg_catalog.pg_advisory_unlock($1)", applyLock)
	}
	_, _ = i.conn.Exec(ctx, "reset role; reset all")
}

// step runs a transaction. While it fails because of a lock, step logs which sessions hold the
// lock, waits for them, and runs it again. The log line begins with what.
func (i *installer) step(ctx context.Context, what string, run func() error) error {
	pins, err := pinsScript(i.lockTimeout)
	if err != nil {
		return err
	}
	for {
		// Before each step, because tern resets all settings after a migration.
		if _, err := i.conn.Exec(ctx, pins); err != nil {
			return err
		}
		stop := i.watch(ctx)
		err := run()
		found := stop()
		if failedForLock(err) {
			if found.err == nil {
				found.err = err
			}
			i.log(fmt.Sprintf("%s: waiting for a lock that is held by %s", what, found))
			if err = i.pause(ctx, found); err == nil {
				continue
			}
		}
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s: stopped while it waited for %s: %w", what, found, err)
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
	names        []string
	transactions []string // as in pg_locks.virtualtransaction
	err          error    // why they are not known
}

func (h holders) String() string {
	switch {
	case len(h.names) > 0:
		return strings.Join(h.names, " and ")
	case h.err != nil:
		return fmt.Sprintf("another session (%v)", h.err)
	}
	return "another session"
}

// watch finds out which sessions block the step that begins now, on a second connection: when the
// step has failed, its place in the lock queue is gone. It connects only if the step takes long.
// stop ends it and returns what it found last.
func (i *installer) watch(ctx context.Context) (stop func() holders) {
	ctx, cancel := context.WithCancel(ctx)
	var found holders
	var done sync.WaitGroup
	done.Go(func() {
		if !sleep(ctx, i.lockTimeout/4) {
			return
		}
		conn, err := pgx.ConnectConfig(ctx, i.conn.Config())
		if err != nil {
			found.err = err
			return
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		if _, err := conn.Exec(ctx, "set statement_timeout = 0"); err != nil {
			found.err = err
			return
		}
		for {
			now, err := blockers(ctx, conn, i.pid)
			if err != nil && ctx.Err() == nil {
				found.err = err
			}
			if len(now.names) > 0 {
				found = now
			}
			if !sleep(ctx, i.lockTimeout/8) {
				return
			}
		}
	})
	return func() holders {
		cancel()
		done.Wait()
		return found
	}
}

// blockers returns which sessions block the one with this process ID. What only a superuser may see
// of other sessions is left out. Process 0 stands for all prepared transactions.
func blockers(ctx context.Context, conn *pgx.Conn, pid int32) (holders, error) {
	rows, err := conn.Query(ctx, `
		select
		  case
		    when b.pid = 0 then pg_catalog.concat('a prepared transaction (', (
		      select pg_catalog.string_agg(
		        pg_catalog.format('%L by %I since %s', p.gid, p.owner, pg_catalog.date_trunc('second', p.prepared)), ', ')
		      from pg_catalog.pg_prepared_xacts as p
		      where p.database = pg_catalog.current_database()
		    ), ')')
		    else pg_catalog.format('process %s (%s)', b.pid, pg_catalog.concat_ws(
		      ', ',
		      'application ' || pg_catalog.quote_literal(nullif(a.application_name, '')),
		      nullif(a.backend_type, 'client backend'),
		      'user ' || pg_catalog.quote_ident(a.usename),
		      a.state,
		      'transaction since ' || pg_catalog.date_trunc('second', a.xact_start)
		    ))
		  end,
		  array(
		    select distinct l.virtualtransaction
		    from pg_catalog.pg_locks as l
		    where coalesce(l.pid, 0) = b.pid
		  )
		from (select distinct x.pid from pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) as x (pid)) as b
		left join pg_catalog.pg_stat_activity as a
		  on a.pid = b.pid
		order by b.pid`, pid)
	if err != nil {
		return holders{}, err
	}
	var found holders
	var name string
	var transactions []string
	_, err = pgx.ForEachRow(rows, []any{&name, &transactions}, func() error {
		found.names = append(found.names, name)
		found.transactions = append(found.transactions, transactions...)
		return nil
	})
	return found, err
}

// pause waits until the transactions have ended, at most for maxPause.
func (i *installer) pause(ctx context.Context, found holders) error {
	if len(found.transactions) == 0 && !sleep(ctx, i.lockTimeout) {
		return context.Cause(ctx)
	}
	for end := time.Now().Add(maxPause); time.Now().Before(end); {
		if !sleep(ctx, i.lockTimeout/8) {
			return context.Cause(ctx)
		}
		var held bool
		err := i.conn.QueryRow(ctx, `
			select exists (select from pg_catalog.pg_locks where virtualtransaction = any ($1))`, found.transactions).Scan(&held)
		if err != nil {
			return err
		}
		if !held {
			return nil
		}
	}
	return nil
}

// sleep reports whether the time has passed before ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
