package pgtest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"
)

// given is the server of TEST_DATABASE_URL, which other processes and other people use at the same time.
//
// A process holds its run's number there as an advisory lock, on a connection that it keeps open: so another process knows
// whether what is named after a run may still be in use. It is held before anything is made, and the server lets go of it when
// the process is gone, however it ended.
type given struct {
	conn *pgx.Conn
}

// lockClass is the first half of our advisory locks' keys: "coup" in ASCII.
const lockClass = 0x636f7570

func findGiven(ctx context.Context, connection string) (*server, error) {
	conn, err := pgx.Connect(ctx, connection)
	if err != nil {
		return nil, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	g := &given{conn: conn}
	s := newServer(connection, g)
	s.show = withoutPassword(connection)
	if err := g.prepare(ctx, s); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	return s, nil
}

func (g *given) prepare(ctx context.Context, s *server) error {
	for locked := false; !locked; {
		s.run = newRun()
		err := g.conn.QueryRow(ctx, "select pg_try_advisory_lock($1, $2)", int32(lockClass), int32(lockNumber(s.run))).Scan(&locked)
		if err != nil {
			return err
		}
	}
	// Servers may end idle sessions after a while; ours is idle on purpose. (The setting is there from PostgreSQL 14 on.)
	if _, err := g.conn.Exec(ctx, "set idle_session_timeout = 0"); err != nil {
		return err
	}
	return g.sweep(ctx)
}

func lockNumber(run string) uint32 {
	number, err := hex.DecodeString(run)
	if err != nil || len(number) != 4 {
		panic("dbtest: a run is 8 hex digits: " + run)
	}
	return binary.BigEndian.Uint32(number)
}

var ours = regexp.MustCompile(`^coupon_test_([0-9a-f]{8})_`)

// sweep drops what runs that were killed have left, and what failed tests of this package have left before.
//
// The names are read before the locks: a run takes its lock before it makes anything, so that whatever is seen and not locked
// is nobody's any more. Another process may sweep at the same time, and a drop may fail for that; somebody will sweep again.
func (g *given) sweep(ctx context.Context) error {
	type leftover struct{ Name, Comment string }
	rows, err := g.conn.Query(ctx, `
		select datname, coalesce(shobj_description(oid, 'pg_database'), '') from pg_database where datname ~ $1
		union
		select rolname, coalesce((select shobj_description(oid, 'pg_database') from pg_database where datname = rolname), '')
		from pg_roles where rolname ~ $1`, ours.String())
	if err != nil {
		return err
	}
	leftovers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leftover])
	if err != nil {
		return err
	}
	rows, err = g.conn.Query(ctx, "select objid::bigint from pg_locks where locktype = 'advisory' and classid = $1::bigint::oid",
		int64(lockClass))
	if err != nil {
		return err
	}
	locks, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	alive := map[uint32]bool{}
	for _, number := range locks {
		alive[uint32(number)] = true
	}

	for _, l := range leftovers {
		if alive[lockNumber(ours.FindStringSubmatch(l.Name)[1])] || (l.Comment != "" && l.Comment != keptFor(thisPackage())) {
			continue
		}
		if _, err := g.conn.Exec(ctx, dropDatabase(l.Name)); err == nil {
			_, _ = g.conn.Exec(ctx, dropRole(l.Name))
		}
	}
	return nil
}

func (g *given) keep() (string, error) { return "", nil }

func (g *given) close(s *server) error {
	err := s.exec(dropDatabase("coupon_test_" + s.run + "_template"))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = g.conn.Close(ctx) // lets go of the run's number: last, for the sweepers
	return err
}
