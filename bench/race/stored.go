package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/procmem"
)

// The workloads of this file run on many stored claims. Each has its own databases, so that rows of
// other workloads do not influence it. SQL writes the same rows that claims would write, because
// claiming them would take an hour.

// createDatabases creates databases and calls fill for the first of them. cleanup, which is never
// nil, drops them.
func (m *machine) createDatabases(ctx context.Context, fill func(*pgx.Conn) error, names ...string) (cleanup func() error, err error) {
	cleanup = func() error {
		var errs []error
		for _, name := range names {
			errs = append(errs, m.exec(context.WithoutCancel(ctx), "drop database if exists "+name+" with (force)"))
		}
		return errors.Join(errs...)
	}
	for i, name := range names {
		conn, err := m.createDatabase(ctx, name)
		if err == nil && i == 0 {
			err = fill(conn)
		}
		if conn != nil {
			err = errors.Join(err, conn.Close(ctx))
		}
		if err != nil {
			return cleanup, fmt.Errorf("database %s: %w", name, err)
		}
	}
	// Checkpoint now, so that none runs during the first round.
	return cleanup, m.exec(ctx, "checkpoint")
}

// fill stores coupons stored-1, stored-2 and so on, each claimed by the same users, with a
// remaining stock of one.
func fill(ctx context.Context, conn *pgx.Conn, coupons, users int) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // does nothing after the commit
	// Without triggers: the rows satisfy them, and checking ten million takes minutes.
	if _, err := tx.Exec(ctx, "set local session_replication_role = replica"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
		insert into coupond.coupons (name, amount, remaining_amount)
		select 'stored-' || c, $2::int + 1, 1
		from generate_series(1, $1::int) as c`, coupons, users); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
		insert into coupond.claims (coupon_name, claim_number, user_id)
		select 'stored-' || c, u, 'user-' || lpad(u::text, 7, '0')
		from generate_series(1, $1::int) as c, generate_series(1, $2::int) as u`, coupons, users); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func prepareTenMillion(ctx context.Context, r *race) (func() error, error) {
	return r.machine.createDatabases(ctx, func(conn *pgx.Conn) error {
		if err := fill(ctx, conn, 1_000, 10_000); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "vacuum (freeze, analyze) coupond.claims")
		return err
	}, "stored", "empty")
}

const (
	millionUsers  = 1_000_000
	millionCoupon = "stored-1"
	userBytes     = len("user-0000001")
)

func prepareMillion(ctx context.Context, r *race) (func() error, error) {
	return r.machine.createDatabases(ctx, func(conn *pgx.Conn) error {
		if err := fill(ctx, conn, 1, millionUsers); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "vacuum (freeze, analyze) coupond.claims")
		return err
	}, "million")
}

// readMillion reads a coupon of 1,000,000 claims by GET and by psql's COPY, and then by GET again
// and again while other clients claim.
func readMillion(ctx context.Context, r *race, s *service) (figures, error) {
	get := func() (time.Duration, error) {
		began := time.Now()
		size, err := download(ctx, "http://"+s.client.Address+load.CouponPath(millionCoupon))
		if err == nil && size < int64(millionUsers*userBytes) {
			err = fmt.Errorf("the answer has %d bytes, want at least %d", size, millionUsers*userBytes)
		}
		return time.Since(began), err
	}
	peak := s.peakMemory()
	alone, err := get()
	if err != nil {
		return figures{}, err
	}
	more := peak()
	copied, err := r.copyMillion(ctx, s)
	if err != nil {
		return figures{}, err
	}

	var stop atomic.Bool
	reading := make(chan error, 1)
	go func() {
		var err error
		for err == nil && !stop.Load() {
			_, err = get()
		}
		reading <- err
	}()
	f, err := r.hot(ctx, s, load.Plan{})
	stop.Store(true)
	f.CopyRatio, f.AddedMemory = alone.Seconds()/copied.Seconds(), more
	return f, errors.Join(err, <-reading)
}

// peakMemory returns a function that returns by how many MiB the memory of the service has grown at
// most since this call. On systems without /proc that is 0.
func (s *service) peakMemory() (added func() float64) {
	pid := s.instances[0].cmd.Process.Pid
	_ = procmem.ResetPeak(pid) // where it fails, Peak fails too
	before, err := procmem.Peak(pid)
	return func() float64 {
		after, errAfter := procmem.Peak(pid)
		if err != nil || errAfter != nil {
			return 0
		}
		return float64(after-before) / (1 << 20)
	}
}

// copyMillion returns how long psql's COPY takes to write the users of the coupon of 1,000,000
// claims.
func (r *race) copyMillion(ctx context.Context, s *service) (time.Duration, error) {
	began := time.Now()
	command := exec.CommandContext(ctx, filepath.Join(r.machine.postgres.BinDir(), "psql"),
		"--no-psqlrc", "--quiet", "--dbname", r.machine.postgres.URL(s.database), "--command",
		"copy (select user_id from coupond.claims where coupon_name = '"+millionCoupon+"' order by claim_number) to stdout")
	out, err := command.Output()
	if err == nil && len(out) < millionUsers*userBytes {
		err = fmt.Errorf("%d bytes, want at least %d", len(out), millionUsers*userBytes)
	}
	if err != nil {
		return 0, fmt.Errorf("psql's COPY: %w", err)
	}
	return time.Since(began), nil
}

// download gets url, discards the body and returns its size in bytes.
func download(ctx context.Context, url string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }() // read to the end, or failed already
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", response.Status)
	}
	return io.Copy(io.Discard, response.Body)
}

// The coupons of workload "old plans", the number of claims of each, and the claims of one batch.
const (
	oldCoupons = 2
	oldUsers   = 100_000
	oldBatch   = 64
)

// prepareOldPlans opens a session that plans its calls while the tables have one claim, and then
// stores the other claims. Autovacuum is off, because PostgreSQL plans again after it has updated a
// table's statistics.
func prepareOldPlans(ctx context.Context, r *race) (func() error, error) {
	cleanup, err := r.machine.createDatabases(ctx, func(conn *pgx.Conn) error {
		for _, sql := range []string{
			"alter table coupond.coupons set (autovacuum_enabled = false)",
			"alter table coupond.claims set (autovacuum_enabled = false)",
			"select coupond.create_coupon('first', 1)",
			"select coupond.claim_coupon('user-0000001', 'first')",
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}, "plans")
	if err != nil {
		return cleanup, err
	}
	if r.oldSession, err = r.openSession(ctx, "first", "first"); err != nil {
		return cleanup, err
	}
	closeAndCleanup := func() error {
		return errors.Join(r.oldSession.Close(context.WithoutCancel(ctx)), cleanup())
	}

	conn, err := pgx.Connect(ctx, r.machine.postgres.URL("plans"))
	if err != nil {
		return closeAndCleanup, err
	}
	return closeAndCleanup, errors.Join(fill(ctx, conn, oldCoupons, oldUsers), conn.Close(ctx))
}

// openSession opens a session with the service's role, and repeats calls for two coupons until its
// plans are final: PostgreSQL chooses between a custom and a generic plan after five executions.
func (r *race) openSession(ctx context.Context, coupon, other string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(r.machine.postgres.URL("plans"))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["role"] = "coupon_service"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	users := make([]string, oldBatch)
	for i := range users {
		users[i] = "user-0000001"
	}
	for range 10 {
		if err := claimAgain(ctx, conn, users, coupon, other); err != nil {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	return conn, nil
}

// claimAgain sends two batches of claims of users that have both coupons already: one for coupon,
// and one for both coupons. It returns an error unless all claims are rejected.
func claimAgain(ctx context.Context, conn *pgx.Conn, users []string, coupon, other string) error {
	coupons, positions := make([]string, len(users)), make([]int32, len(users))
	for i := range users {
		coupons[i], positions[i] = [2]string{coupon, other}[i%2], int32(i)
	}
	var rejected int
	err := conn.QueryRow(ctx, `
		select count(*) from unnest(coupond.claim_coupons($1, $2)) as s where s = 'already_claimed'`,
		users, coupon).Scan(&rejected)
	if err == nil && rejected != len(users) {
		err = fmt.Errorf("claim_coupons rejected %d of %d claims, want all", rejected, len(users))
	}
	if err != nil {
		return err
	}
	err = conn.QueryRow(ctx, `
		select count(*) from coupond.claim_batch($1, $2, $3) where status = 'already_claimed'`,
		users, coupons, positions).Scan(&rejected)
	if err == nil && rejected != len(users) {
		err = fmt.Errorf("claim_batch rejected %d of %d claims, want all", rejected, len(users))
	}
	return err
}

func rejectByOldSession(ctx context.Context, r *race, _ *service) (figures, error) {
	return r.rejectionRate(ctx, r.oldSession)
}

func rejectByFreshSession(ctx context.Context, r *race, _ *service) (figures, error) {
	conn, err := r.openSession(ctx, "stored-1", "stored-2")
	if err != nil {
		return figures{}, err
	}
	f, err := r.rejectionRate(ctx, conn)
	return f, errors.Join(err, conn.Close(ctx))
}

// rejectionRate measures how many claims per second are rejected in a session.
func (r *race) rejectionRate(ctx context.Context, conn *pgx.Conn) (figures, error) {
	random := rand.New(rand.NewPCG(r.seed, 0))
	users := make([]string, oldBatch)
	began, n := time.Now(), 0
	for time.Since(began) < r.duration {
		for i := range users {
			users[i] = r.users[random.IntN(oldUsers)]
		}
		if err := claimAgain(ctx, conn, users, "stored-1", "stored-2"); err != nil {
			return figures{}, err
		}
		n += 2 * oldBatch
	}
	return figures{Rate: float64(n) / time.Since(began).Seconds()}, nil
}
