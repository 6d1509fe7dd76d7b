package pgtest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"
)

// external is the server of TEST_DATABASE_URL. Other processes and users may use it at the same
// time.
//
// Each process holds an advisory lock on its run ID, on a connection that stays open. So other
// processes can see whether the databases of a run may still be in use. The lock is taken before
// anything is created, and the server releases it when the process has ended.
type external struct {
	conn *pgx.Conn
}

// lockClass is the first key of all advisory locks of this package: "coup" in ASCII.
const lockClass = 0x636f7570

func connectExternal(ctx context.Context, connection string) (*instance, error) {
	conn, err := pgx.Connect(ctx, connection)
	if err != nil {
		return nil, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	e := &external{conn: conn}
	s := newInstance(connection, e)
	s.redacted = withoutPassword(connection)
	if err := e.prepare(ctx, s); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("TEST_DATABASE_URL: %w", err)
	}
	return s, nil
}

func (e *external) prepare(ctx context.Context, s *instance) error {
	for locked := false; !locked; {
		s.runID = newRunID()
		err := e.conn.QueryRow(ctx, "select pg_try_advisory_lock($1, $2)", int32(lockClass), int32(lockNumber(s.runID))).Scan(&locked)
		if err != nil {
			return err
		}
	}
	// The server may be configured to end idle sessions, and this one stays idle. (The setting
	// exists from PostgreSQL 14 on.)
	if _, err := e.conn.Exec(ctx, "set idle_session_timeout = 0"); err != nil {
		return err
	}
	return e.dropLeftovers(ctx)
}

func lockNumber(runID string) uint32 {
	number, err := hex.DecodeString(runID)
	if err != nil || len(number) != 4 {
		panic("pgtest: a run ID has 8 hex digits: " + runID)
	}
	return binary.BigEndian.Uint32(number)
}

var runName = regexp.MustCompile(`^coupon_test_([0-9a-f]{8})_`)

// dropLeftovers drops the databases and roles of killed runs, and those that failed tests of this
// package have kept.
//
// It reads the names before the locks. A run takes its lock before it creates anything, so a name
// without a lock belongs to a run that has ended. Another process may drop the same databases at
// the same time; then a drop may fail, and a later run repeats it.
func (e *external) dropLeftovers(ctx context.Context) error {
	type leftover struct{ Name, Comment string }
	rows, err := e.conn.Query(ctx, `
		select datname, coalesce(shobj_description(oid, 'pg_database'), '') from pg_database where datname ~ $1
		union
		select rolname, coalesce((select shobj_description(oid, 'pg_database') from pg_database where datname = rolname), '')
		from pg_roles where rolname ~ $1`, runName.String())
	if err != nil {
		return err
	}
	leftovers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leftover])
	if err != nil {
		return err
	}
	rows, err = e.conn.Query(ctx, "select objid::bigint from pg_locks where locktype = 'advisory' and classid = $1::bigint::oid",
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
		if alive[lockNumber(runName.FindStringSubmatch(l.Name)[1])] || (l.Comment != "" && l.Comment != keptComment(packageID())) {
			continue
		}
		if _, err := e.conn.Exec(ctx, dropDatabase(l.Name)); err == nil {
			_, _ = e.conn.Exec(ctx, dropRole(l.Name))
		}
	}
	return nil
}

func (e *external) keep() (string, error) { return "", nil }

func (e *external) close(s *instance) error {
	err := s.exec(dropDatabase("coupon_test_" + s.runID + "_template"))
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_ = e.conn.Close(ctx) // releases the run's lock
	return err
}
