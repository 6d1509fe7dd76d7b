package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/localpg"
)

const (
	instances    = 2
	claimTimeout = 3 * time.Second
	// comeBackWithin is how long PostgreSQL and the instances may take until they are healthy, when no fault holds them down.
	comeBackWithin = time.Minute
)

// world is what is proved, and what its faults befall: PostgreSQL, the proxy before it, and two instances of the real service.
type world struct {
	home      string
	proxy     *faultproxy.Proxy
	instances []*instance
	wal       *walDisk // nil: there is none, and noWAL says why
	noWAL     string
	onSale    atomic.Pointer[string] // a hot coupon

	mu       sync.Mutex
	postgres *localpg.Server // nil: it is down
	options  localpg.Options
	admin    string // the database past the proxy, as its owner
	number   string // the server's version
}

// newWorld builds the service and starts everything in a folder of its own.
func newWorld(ctx context.Context, log io.Writer) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(false))
		}
	}()
	// Short, because the path of a unix socket is; open, because PostgreSQL runs as another user when we are root.
	if w.home, err = os.MkdirTemp("", "prove-"); err != nil {
		return w, err
	}
	if err := os.Chmod(w.home, 0o711); err != nil {
		return w, err
	}
	binary := filepath.Join(w.home, "coupond")
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/coupond").CombinedOutput(); err != nil {
		return w, fmt.Errorf("go build ./cmd/coupond (run this at the top of the repository): %w\n%s", err, output)
	}

	// As PostgreSQL comes: what is committed is on disk. Less WAL than usual is kept, so that its disk can be a small one.
	w.options = localpg.Options{Dir: filepath.Join(w.home, "postgres"), Log: log, Settings: map[string]string{
		"max_wal_size": "96MB", "min_wal_size": "32MB",
	}}
	if err := w.startPostgres(ctx); err != nil {
		return w, err
	}
	if err := w.moveWAL(ctx); err != nil {
		return w, err
	}
	if err := w.install(ctx); err != nil {
		return w, err
	}

	if w.proxy, err = faultproxy.New(w.admin); err != nil {
		return w, err
	}
	for i := range instances {
		one, err := newInstance(binary, filepath.Join(w.home, fmt.Sprintf("coupond-%d.log", i)), w.proxy.URL(w.admin))
		if err != nil {
			return w, err
		}
		w.instances = append(w.instances, one)
		if err := one.start(); err != nil {
			return w, err
		}
	}
	return w, w.healthy(ctx)
}

// install makes the database of the coupons.
func (w *world) install(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.postgres.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "create database coupons")
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	w.admin = w.postgres.URL("coupons")
	return w.asOwner(ctx, func(conn *pgx.Conn) error {
		_, err := db.Apply(ctx, conn)
		return err
	})
}

// asOwner gives a connection past the proxy, as a DBA has it.
func (w *world) asOwner(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, w.admin)
	if err != nil {
		return err
	}
	err = do(conn)
	_ = conn.Close(context.WithoutCancel(ctx)) // what mattered has been done
	return err
}

// startPostgres starts the server, also one that has ended by itself; one that runs is left alone.
func (w *world) startPostgres(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.postgres != nil {
		select {
		case <-w.postgres.Done():
		default:
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, comeBackWithin)
	defer cancel()
	server, err := localpg.Start(ctx, w.options)
	if err != nil {
		return err
	}
	// Its address survives its restarts: the proxy, and nobody else, has to find it again.
	w.postgres, w.options.Port, w.number = server, server.Port(), server.Version()
	return nil
}

// version is that of PostgreSQL.
func (w *world) version() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.number
}

// stopPostgres ends the server: how is Stop or Kill.
func (w *world) stopPostgres(how func(*localpg.Server) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.postgres == nil {
		return nil
	}
	server := w.postgres
	w.postgres = nil
	return how(server)
}

// healthy waits until every instance says so.
func (w *world) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, comeBackWithin)
	defer cancel()
	for _, one := range w.instances {
		if err := one.healthy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// close ends everything. keep leaves the logs and the data, in one folder.
func (w *world) close(keep bool) error {
	var errs []error
	for _, one := range w.instances {
		one.kill()
	}
	if w.proxy != nil {
		w.proxy.Close()
	}
	errs = append(errs, w.stopPostgres((*localpg.Server).Kill))
	if w.wal != nil {
		if keep {
			errs = append(errs, w.wal.back())
		}
		errs = append(errs, w.wal.remove())
	}
	if w.home != "" && !keep {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, localpg.Remove(ctx, w.options.Dir), os.RemoveAll(w.home))
	}
	return errors.Join(errs...)
}
