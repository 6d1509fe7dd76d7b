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
)

// The workloads here are about much that is stored already. Each has databases of its own, so that what the others have
// left behind is not part of it; and what is stored is written by SQL as claims leave it, without the hour that it would
// take to claim it.

// withDatabases makes databases and lets fill put something into the first of them.
func (m *machine) withDatabases(ctx context.Context, fill func(*pgx.Conn) error, names ...string) (tidy func() error, err error) {
	tidy = func() error {
		var errs []error
		for _, name := range names {
			errs = append(errs, m.command(context.WithoutCancel(ctx), "drop database if exists "+name+" with (force)"))
		}
		return errors.Join(errs...)
	}
	for i, name := range names {
		conn, err := m.create(ctx, name)
		if err == nil && i == 0 {
			err = fill(conn)
		}
		if conn != nil {
			err = errors.Join(err, conn.Close(ctx))
		}
		if err != nil {
			return tidy, fmt.Errorf("database %s: %w", name, err)
		}
	}
	// Or the checkpoint would come in the middle of the first runs.
	return tidy, m.command(ctx, "checkpoint")
}

// fill stores claims: of coupons called stored-1 and so on, each claimed by the same users, each with one left.
func fill(ctx context.Context, conn *pgx.Conn, coupons, users int) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // of nothing, after the commit
	// The foreign key holds by the statements themselves: checked row by row it would take minutes.
	if _, err := tx.Exec(ctx, "set local session_replication_role = replica"); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
		insert into public.coupons (name, amount, remaining_amount)
		select 'stored-' || c, $2::int + 1, 1
		from generate_series(1, $1::int) as c`, coupons, users); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `
		insert into public.claims (coupon_name, claim_number, user_id)
		select 'stored-' || c, u, 'user-' || lpad(u::text, 7, '0')
		from generate_series(1, $1::int) as c, generate_series(1, $2::int) as u`, coupons, users); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func prepareTenMillion(ctx context.Context, r *race) (func() error, error) {
	return r.machine.withDatabases(ctx, func(conn *pgx.Conn) error {
		if err := fill(ctx, conn, 1_000, 10_000); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "vacuum (freeze, analyze) public.claims")
		return err
	}, "stored", "empty")
}

const (
	millionUsers  = 1_000_000
	millionCoupon = "stored-1"
	userBytes     = len("user-0000001")
)

func prepareMillion(ctx context.Context, r *race) (func() error, error) {
	return r.machine.withDatabases(ctx, func(conn *pgx.Conn) error {
		if err := fill(ctx, conn, 1, millionUsers); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "vacuum (freeze, analyze) public.claims")
		return err
	}, "million")
}

// million reads a coupon of 1,000,000 claims by GET, the same by psql's COPY, and then by GET as long as others claim.
func million(ctx context.Context, r *race, c *contestant) (figures, error) {
	get := func() (time.Duration, error) {
		began := time.Now()
		size, err := download(ctx, "http://"+c.service.Address+load.CouponPath(millionCoupon))
		if err == nil && size < int64(millionUsers*userBytes) {
			err = fmt.Errorf("the answer has only %d bytes", size)
		}
		return time.Since(began), err
	}
	before := forgetPeak(c.cmd.Process.Pid)
	alone, err := get()
	if err != nil {
		return figures{}, err
	}
	more := peak(c.cmd.Process.Pid) - before
	copied, err := r.copyOut(ctx, c)
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
	f, err := r.hot(ctx, c, load.Plan{})
	stop.Store(true)
	f.CopyTimes, f.MoreMemory = alone.Seconds()/copied.Seconds(), more
	return f, errors.Join(err, <-reading)
}

// copyOut is how long psql takes to write down who has the coupon of 1,000,000 claims.
func (r *race) copyOut(ctx context.Context, c *contestant) (time.Duration, error) {
	began := time.Now()
	command := exec.CommandContext(ctx, filepath.Join(r.machine.postgres.BinDir(), "psql"),
		"--no-psqlrc", "--quiet", "--dbname", r.machine.postgres.URL(c.database), "--command",
		"copy (select user_id from public.claims where coupon_name = '"+millionCoupon+"' order by claim_number) to stdout")
	out, err := command.Output()
	if err == nil && len(out) < millionUsers*userBytes {
		err = fmt.Errorf("only %d bytes", len(out))
	}
	if err != nil {
		return 0, fmt.Errorf("psql's COPY: %w", err)
	}
	return time.Since(began), nil
}

// download reads what is there to its end, keeps nothing of it, and returns how many bytes it was.
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
	defer func() { _ = response.Body.Close() }() // read to the end, or given up
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("answered %s", response.Status)
	}
	return io.Copy(io.Discard, response.Body)
}

// What the sessions of "old plans" ask. Their coupons have 100,000 claims each.
const (
	oldCoupons = 2
	oldUsers   = 100_000
	oldCrowd   = 64
)

// prepareOldPlans lets a session plan all it will ever ask while there is one claim, and only then stores the others.
// PostgreSQL plans again when autovacuum has counted a table, so that is switched off: a plan as old as it can be.
func prepareOldPlans(ctx context.Context, r *race) (func() error, error) {
	tidy, err := r.machine.withDatabases(ctx, func(conn *pgx.Conn) error {
		for _, sql := range []string{
			"alter table public.coupons set (autovacuum_enabled = false)",
			"alter table public.claims set (autovacuum_enabled = false)",
			"select public.create_coupon('first', 1)",
			"select public.claim_coupon('user-0000001', 'first')",
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}, "plans")
	if err != nil {
		return tidy, err
	}
	if r.old, err = r.session(ctx, "first", "first"); err != nil {
		return tidy, err
	}
	closeAndTidy := func() error { return errors.Join(r.old.Close(context.WithoutCancel(ctx)), tidy()) }

	conn, err := pgx.Connect(ctx, r.machine.postgres.URL("plans"))
	if err != nil {
		return closeAndTidy, err
	}
	return closeAndTidy, errors.Join(fill(ctx, conn, oldCoupons, oldUsers), conn.Close(ctx))
}

// session opens a session as the service's role and lets it plan: PostgreSQL settles on a plan after five executions.
func (r *race) session(ctx context.Context, one, other string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(r.machine.postgres.URL("plans"))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["role"] = "coupon_service"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	users := make([]string, oldCrowd)
	for i := range users {
		users[i] = "user-0000001"
	}
	for range 10 {
		if err := reject(ctx, conn, users, one, other); err != nil {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	return conn, nil
}

// reject claims what users have already: in a crowd for one coupon, and in a mixed one.
func reject(ctx context.Context, conn *pgx.Conn, users []string, one, other string) error {
	coupons, positions := make([]string, len(users)), make([]int32, len(users))
	for i := range users {
		coupons[i], positions[i] = [2]string{one, other}[i%2], int32(i)
	}
	var rejected int
	err := conn.QueryRow(ctx, `
		select count(*) from unnest(public.claim_coupons($1, $2)) as s where s = 'already_claimed'`,
		users, one).Scan(&rejected)
	if err == nil && rejected != len(users) {
		err = fmt.Errorf("claim_coupons rejected only %d of %d", rejected, len(users))
	}
	if err != nil {
		return err
	}
	err = conn.QueryRow(ctx, `
		select count(*) from public.claim_batch($1, $2, $3) where status = 'already_claimed'`,
		users, coupons, positions).Scan(&rejected)
	if err == nil && rejected != len(users) {
		err = fmt.Errorf("claim_batch rejected only %d of %d", rejected, len(users))
	}
	return err
}

func rejectByOldSession(ctx context.Context, r *race, _ *contestant) (figures, error) {
	return r.rejections(ctx, r.old)
}

func rejectByFreshSession(ctx context.Context, r *race, _ *contestant) (figures, error) {
	conn, err := r.session(ctx, "stored-1", "stored-2")
	if err != nil {
		return figures{}, err
	}
	f, err := r.rejections(ctx, conn)
	return f, errors.Join(err, conn.Close(ctx))
}

// rejections is how many claims a session rejects in a second.
func (r *race) rejections(ctx context.Context, conn *pgx.Conn) (figures, error) {
	random := rand.New(rand.NewPCG(r.seed, 0))
	users := make([]string, oldCrowd)
	began, n := time.Now(), 0
	for time.Since(began) < r.duration {
		for i := range users {
			users[i] = r.users[random.IntN(oldUsers)]
		}
		if err := reject(ctx, conn, users, "stored-1", "stored-2"); err != nil {
			return figures{}, err
		}
		n += 2 * oldCrowd
	}
	return figures{Rate: float64(n) / time.Since(began).Seconds()}, nil
}
