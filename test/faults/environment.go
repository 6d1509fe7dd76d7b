package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/localpg"
)

const (
	instances    = 2
	claimTimeout = 3 * time.Second
	// recoveryTimeout bounds how long PostgreSQL and the instances take to become healthy when no
	// fault is active.
	recoveryTimeout = time.Minute
)

// environment is the system under test: PostgreSQL, a proxy in front of it, and instances of the
// service.
type environment struct {
	home       string
	proxy      *faultproxy.Proxy
	instances  []*instance
	walDisk    bool                   // the WAL has a disk of its own
	noWALDisk  string                 // why it has none
	saleCoupon atomic.Pointer[string] // the coupon of the latest sale

	// Only the goroutine that injects faults into PostgreSQL uses these.
	postgres *localpg.Server // nil: stopped
	options  localpg.Options
	ownerURL string // connects as the owner of the database, without the proxy
	version  string // of PostgreSQL
}

// newEnvironment builds the service and starts everything, in a folder of its own.
func newEnvironment(ctx context.Context, log io.Writer) (e *environment, err error) {
	e = &environment{}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close(false))
		}
	}()
	// In the system's temporary folder, because the path of a unix socket is limited to some 100
	// bytes; accessible to all, because PostgreSQL runs as another user when this program runs as
	// root.
	if e.home, err = os.MkdirTemp("", "faults-"); err != nil {
		return e, err
	}
	if err := os.Chmod(e.home, 0o711); err != nil {
		return e, err
	}
	binary := filepath.Join(e.home, "coupond")
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/coupond").CombinedOutput(); err != nil {
		return e, fmt.Errorf("go build ./cmd/coupond (run this at the top of the repository): %w\n%s", err, output)
	}

	// fsync and synchronous_commit keep their defaults: what is committed is on disk. There is less
	// WAL than by default, so that a small disk is enough for it.
	e.options = localpg.Options{Dir: filepath.Join(e.home, "postgres"), Log: log, Settings: map[string]string{
		"max_wal_size": "96MB", "min_wal_size": "32MB",
	}}
	if err := e.startPostgres(ctx); err != nil {
		return e, err
	}
	if err := e.mountWALDisk(ctx); err != nil {
		return e, err
	}
	if err := e.install(ctx); err != nil {
		return e, err
	}
	if e.proxy, err = faultproxy.New(e.ownerURL); err != nil {
		return e, err
	}
	for i := range instances {
		one, err := newInstance(ctx, binary, filepath.Join(e.home, fmt.Sprintf("coupond-%d.log", i)), e.proxy.URL(e.ownerURL))
		if err != nil {
			return e, err
		}
		e.instances = append(e.instances, one)
		if err := one.start(); err != nil {
			return e, err
		}
	}
	return e, e.waitHealthy(ctx)
}

// install creates the database of the service.
func (e *environment) install(ctx context.Context) error {
	e.ownerURL = e.postgres.URL("postgres")
	err := e.asOwner(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "create database coupond")
		return err
	})
	if err != nil {
		return err
	}
	e.ownerURL = e.postgres.URL("coupond")
	return e.migrate(ctx)
}

func (e *environment) migrate(ctx context.Context) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		_, err := db.Apply(ctx, conn, db.Options{})
		return err
	})
}

// asOwner calls f with a connection of the database owner that does not go through the proxy.
func (e *environment) asOwner(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, e.ownerURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the result of f does not depend on it
	return f(conn)
}

// startPostgres starts the server, also after it exited by itself. It does nothing if the server
// runs.
func (e *environment) startPostgres(ctx context.Context) error {
	if e.postgres != nil {
		select {
		case <-e.postgres.Done():
		default:
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	server, err := localpg.Start(ctx, e.options)
	if err != nil {
		return err
	}
	// The port stays the same after a restart, so that the proxy finds the server again.
	e.postgres, e.options.Port, e.version = server, server.Port(), server.Version()
	return nil
}

// stopPostgres stops the server with stop, which is Stop or Kill.
func (e *environment) stopPostgres(stop func(*localpg.Server) error) error {
	if e.postgres == nil {
		return nil
	}
	server := e.postgres
	e.postgres = nil
	return stop(server)
}

// waitPostgres waits until PostgreSQL answers, and starts it if it does not run. After a panic
// PostgreSQL either recovers by itself or exits, which may happen after it was seen running here.
func (e *environment) waitPostgres(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	for {
		err := e.startPostgres(ctx)
		if err == nil {
			err = e.asOwner(ctx, func(conn *pgx.Conn) error { return conn.Ping(ctx) })
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// waitHealthy waits until all instances are healthy.
func (e *environment) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	for _, one := range e.instances {
		if err := one.waitHealthy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// storedCoupons reads all coupons with their claims from the tables, without the service and the
// proxy. gaps has the coupons whose claim numbers have gaps.
func (e *environment) storedCoupons(ctx context.Context) (stored map[string]load.Coupon, gaps []string, err error) {
	stored = map[string]load.Coupon{}
	err = e.asOwner(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			select c.name, c.amount, c.remaining_amount,
			  coalesce(array_agg(k.user_id order by k.claim_number) filter (where k.user_id is not null), '{}'),
			  coalesce(max(k.claim_number) <> count(*), false)
			from coupond.coupons as c
			left join coupond.claims as k on k.coupon_name = c.name
			group by c.name`)
		if err != nil {
			return err
		}
		var c load.Coupon
		var gap bool
		_, err = pgx.ForEachRow(rows, []any{&c.Name, &c.Amount, &c.Remaining, &c.ClaimedBy, &gap}, func() error {
			stored[c.Name] = c
			if gap {
				gaps = append(gaps, c.Name)
			}
			c.ClaimedBy = nil // the next scan must not write into it
			return nil
		})
		return err
	})
	return stored, gaps, err
}

// close stops everything. If keep is set, the logs and the data stay in home.
func (e *environment) close(keep bool) error {
	for _, one := range e.instances {
		one.kill()
	}
	if e.proxy != nil {
		e.proxy.Close()
	}
	errs := []error{e.stopPostgres((*localpg.Server).Kill), e.unmountWALDisk()}
	if e.home != "" && !keep {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, localpg.Remove(ctx, e.options.Dir), os.RemoveAll(e.home))
	}
	return errors.Join(errs...)
}
