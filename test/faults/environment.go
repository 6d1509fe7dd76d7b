package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	home      string
	proxy     *faultproxy.Proxy
	instances []*instance
	noWALDisk string // why the WAL has no disk of its own; "" if it has one

	// Only the goroutine that injects faults into PostgreSQL uses these.
	postgres *localpg.Server
	options  localpg.Options
	ownerURL string // connects as the owner of the schema, without the proxy
	version  string // of PostgreSQL
}

// start builds the service and starts everything, in a folder of its own.
func (e *environment) start(ctx context.Context, log io.Writer) (err error) {
	// In the system's temporary folder, because the path of a unix socket is limited to some 100
	// bytes; accessible to all, because PostgreSQL runs as another user when this program runs as
	// root.
	if e.home, err = os.MkdirTemp("", "faults-"); err != nil {
		return err
	}
	if err := os.Chmod(e.home, 0o711); err != nil {
		return err
	}
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", e.home, "./cmd/coupond").CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/coupond (run this at the top of the repository): %w\n%s", err, output)
	}

	// fsync and synchronous_commit keep their defaults: what is committed is on disk. There is less
	// WAL than by default, so that a small disk is enough for it.
	e.options = localpg.Options{Dir: filepath.Join(e.home, "postgres"), Log: log, Settings: map[string]string{
		"max_wal_size": "96MB", "min_wal_size": "32MB", "restart_after_crash": "off",
	}}
	for _, step := range []func(context.Context) error{
		e.startPostgres, e.mountWALDisk, e.startPostgres, e.migrate, e.storeLargeCoupon, e.startInstances, e.waitHealthy,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (e *environment) startInstances(ctx context.Context) (err error) {
	if e.proxy, err = faultproxy.New(e.ownerURL); err != nil {
		return err
	}
	for i := range instances {
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0") // finds a free port
		if err != nil {
			return err
		}
		one := &instance{
			log: fmt.Sprintf("%s/coupond-%d.log", e.home, i), binary: filepath.Join(e.home, "coupond"),
			database: e.proxy.URL(e.ownerURL), address: listener.Addr().String(),
		}
		e.instances = append(e.instances, one)
		if err := errors.Join(listener.Close(), one.start()); err != nil {
			return err
		}
	}
	return nil
}

func (e *environment) migrate(ctx context.Context) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		_, err := db.Apply(ctx, conn, db.Options{})
		return err
	})
}

// asOwner calls f with a connection of the owner of the schema that does not go through the proxy.
func (e *environment) asOwner(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, e.ownerURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

// startPostgres starts the server, which must not run.
func (e *environment) startPostgres(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	server, err := localpg.Start(ctx, e.options)
	if err == nil {
		// The port stays the same after a restart, so that the proxy finds the server again.
		e.postgres, e.options.Port, e.version, e.ownerURL = server, server.Port(), server.Version(), server.URL("postgres")
	}
	return err
}

// waitHealthy waits until all instances are healthy.
func (e *environment) waitHealthy(ctx context.Context) error {
	for _, one := range e.instances {
		if err := one.waitHealthy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// storedCoupons reads all coupons that clients can have created with their claims from the tables,
// without the service and the proxy. A claim number that is missing is a claim of the user "".
func (e *environment) storedCoupons(ctx context.Context) (stored []load.Coupon, err error) {
	err = e.asOwner(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			select c.name, c.amount, c.remaining_amount,
			  array(
			    select coalesce(k.user_id, '')
			    from generate_series(1, (select max(claim_number) from coupond.claims where coupon_name = c.name)) as n
			    left join coupond.claims as k on k.coupon_name = c.name and k.claim_number = n
			    order by n)
			from coupond.coupons as c
			where c.name <> $1
			order by c.name`, largeCoupon)
		if err == nil {
			stored, err = pgx.CollectRows(rows, pgx.RowToStructByPos[load.Coupon])
		}
		return err
	})
	return stored, err
}

// close stops everything. If keep is set, the logs and the data stay in home.
func (e *environment) close(keep bool) error {
	for _, one := range e.instances {
		one.kill()
	}
	if e.proxy != nil {
		e.proxy.Close()
	}
	var errs []error
	if e.postgres != nil {
		errs = append(errs, e.postgres.Kill(), e.unmountWALDisk())
	}
	if e.home != "" && !keep {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, localpg.Remove(ctx, e.options.Dir), os.RemoveAll(e.home))
	}
	return errors.Join(errs...)
}
