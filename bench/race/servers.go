package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
)

// The workloads here are about more than one PostgreSQL server: shards behind a proxy (deploy/shards), and standbys
// (deploy/ha). All of them are on this machine, so what they show is what a claim costs, by process, and not what is gained
// by machines of their own; and between them there is no network to speak of.

// site is where a contestant's coupons are when that is not a database of the race's own server.
type site struct {
	url      string            // of the database that its service works on
	database []*localpg.Server // the primary, or the shards
	proxies  []*localpg.Server
	standbys []*localpg.Server
}

// errLeftOut is why a workload does not run on this machine.
var errLeftOut = errors.New("left out")

// servers are those of one workload.
type servers struct {
	machine *machine
	running []*localpg.Server
	names   []string // of the sites
}

// start starts another server. home is its folder below the machine's.
func (s *servers) start(ctx context.Context, home string) (*localpg.Server, error) {
	server, err := localpg.Start(ctx, localpg.Options{
		Dir:      filepath.Join(s.machine.dir, home),
		Log:      os.Stderr,
		BinDir:   s.machine.postgres.BinDir(),
		Settings: map[string]string{"max_wal_size": "8GB", "track_io_timing": "off"},
	})
	if err == nil {
		s.running = append(s.running, server)
	}
	return server, err
}

// open says that the contestant on the database of that name is to be found there.
func (s *servers) open(name string, at site) {
	s.machine.sites[name] = at
	s.names = append(s.names, name)
}

// close ends the servers and removes what they have.
func (s *servers) close(ctx context.Context) error {
	var errs []error
	for _, name := range s.names {
		delete(s.machine.sites, name)
	}
	// The last first: a primary waits for its standbys.
	for _, server := range slices.Backward(s.running) {
		errs = append(errs, server.Kill(), localpg.Remove(ctx, server.Dir()))
	}
	return errors.Join(errs...)
}

// What a contestant of "shards" has for a database, and is called by.
const (
	oneShard   = "a proxy, 1 shard"
	fourShards = "a proxy, 4 shards"
	partitions = 64
)

// prepareShards sets up a proxy with a database before one shard, which is a database of the race's own server, and
// one before four, which are servers.
func prepareShards(ctx context.Context, r *race) (func() error, error) {
	m := r.machine
	s := &servers{machine: m}
	tidy := func() error {
		always := context.WithoutCancel(ctx)
		err := s.close(always)
		return errors.Join(err,
			m.command(always, "drop database if exists shard with (force)"),
			m.command(always, "drop role if exists coupon_proxy_login"))
	}
	var available bool
	err := m.conn.QueryRow(ctx, "select exists (select from pg_available_extensions where name = 'plproxy')").Scan(&available)
	switch {
	case err != nil:
		return tidy, err
	case !available:
		return tidy, fmt.Errorf("%w: PL/Proxy is missing (Debian: postgresql-15-plproxy)", errLeftOut)
	}
	proxy, err := s.start(ctx, "proxy")
	if err != nil {
		return tidy, err
	}
	four := make([]*localpg.Server, 4)
	for i := range four {
		if four[i], err = s.start(ctx, "shard-"+strconv.Itoa(i)); err != nil {
			return tidy, err
		}
	}
	password := rand.Text() // the proxy's on the shards
	for name, shards := range map[string][]*localpg.Server{oneShard: {m.postgres}, fourShards: four} {
		for i, shard := range shards {
			if err := makeShard(ctx, shard, password, i, len(shards)); err != nil {
				return tidy, err
			}
		}
		database := "before_" + strconv.Itoa(len(shards))
		if err := makeProxy(ctx, proxy, password, database, shards); err != nil {
			return tidy, err
		}
		s.open(name, site{url: proxy.URL(database), database: shards, proxies: []*localpg.Server{proxy}})
	}
	return tidy, nil
}

// makeShard makes the database of shard i of so many, as deploy/shards/shard.sql does but for the time-outs.
func makeShard(ctx context.Context, server *localpg.Server, password string, i, of int) error {
	conn, err := createOn(ctx, server, "shard")
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		create role coupon_proxy_login login password '%s' in role coupon_service;
		insert into public.shard (partitions, owned)
		select %d, array_agg(p)
		from generate_series(%d, %[2]d - 1, %[4]d) as p`, password, partitions, i, of))
	return errors.Join(err, conn.Close(ctx))
}

// makeProxy makes a database that is a proxy before the shards.
func makeProxy(ctx context.Context, server *localpg.Server, password, database string, shards []*localpg.Server) error {
	conn, err := newDatabase(ctx, server, database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // all is done, or has failed already
	if err := db.ApplyProxy(ctx, conn); err != nil {
		return err
	}
	options := make([]string, partitions)
	for p := range options {
		options[p] = fmt.Sprintf("p%d 'host=127.0.0.1 port=%d dbname=shard'", p, shards[p%len(shards)].Port())
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		create server coupons foreign data wrapper plproxy options (%s);
		grant usage on foreign server coupons to coupon_proxy;
		create user mapping for coupon_proxy server coupons options (user 'coupon_proxy_login', password '%s')`,
		strings.Join(options, ", "), password))
	return err
}

// What a contestant of "standby" has for a database, and is called by.
const (
	noStandby    = "no standby"
	asynchronous = "1, asynchronous"
	synchronous  = "1, synchronous"
	anyOfTwo     = "2, any 1 synchronous"
)

// standbys are how many each of them has, and which of these a commit waits for (synchronous_standby_names).
var standbys = []struct {
	name  string
	count int
	wait  string
}{
	{noStandby, 0, ""},
	{asynchronous, 1, ""},
	{synchronous, 1, "1 (*)"},
	{anyOfTwo, 2, "ANY 1 (*)"},
}

// prepareStandbys sets up a primary for each contestant, with its standbys. A commit that waits for one waits until it is
// on the standby's disk (synchronous_commit = on).
func prepareStandbys(ctx context.Context, r *race) (func() error, error) {
	s := &servers{machine: r.machine}
	tidy := func() error { return s.close(context.WithoutCancel(ctx)) }
	copier := filepath.Join(r.machine.postgres.BinDir(), "pg_basebackup")
	if _, err := exec.LookPath(copier); err != nil {
		return tidy, fmt.Errorf("%w: %w", errLeftOut, err)
	}
	for i, wanted := range standbys {
		at, err := s.replicated(ctx, copier, i, wanted.count, wanted.wait)
		if err != nil {
			return tidy, err
		}
		s.open(wanted.name, at)
	}
	return tidy, nil
}

// replicated starts primary i with so many standbys, for which its commits wait as that says.
func (s *servers) replicated(ctx context.Context, copier string, i, count int, wait string) (site, error) {
	primary, err := s.start(ctx, fmt.Sprintf("primary-%d", i))
	if err != nil {
		return site{}, err
	}
	conn, err := createOn(ctx, primary, database)
	if err != nil {
		return site{}, err
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is open any more
	at := site{url: primary.URL(database), database: []*localpg.Server{primary}}
	for n := range count {
		home := fmt.Sprintf("standby-%d-%d", i, n)
		if err := copyServer(ctx, copier, primary, filepath.Join(s.machine.dir, home)); err != nil {
			return site{}, err
		}
		standby, err := s.start(ctx, home)
		if err != nil {
			return site{}, err
		}
		at.standbys = append(at.standbys, standby)
	}
	return at, waitFor(ctx, conn, wait, count)
}

// copyServer makes the home of a standby of primary.
func copyServer(ctx context.Context, copier string, primary *localpg.Server, home string) error {
	if err := os.Mkdir(home, 0o711); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, copier, "--pgdata", filepath.Join(home, "data"),
		"--dbname", primary.URL(""), "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream").CombinedOutput()
	if err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	password, err := os.ReadFile(filepath.Join(primary.Dir(), "pgpass"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(home, "pgpass"), password, 0o600)
}

// waitFor has commits wait for standbys as that says, and returns when so many are there.
func waitFor(ctx context.Context, primary *pgx.Conn, names string, count int) error {
	for _, sql := range []string{"alter system set synchronous_standby_names = '" + names + "'", "select pg_reload_conf()"} {
		if _, err := primary.Exec(ctx, sql); err != nil {
			return err
		}
	}
	for {
		var are int
		if err := primary.QueryRow(ctx, `
			select count(*)
			from pg_stat_replication
			where state = 'streaming'
			  and (sync_state = 'async') = ($1 = '')`, names).Scan(&are); err != nil || are == count {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// calmRate is how many claims arrive in a second when nobody waits for anybody.
const calmRate = 200

// hotAndCalm is hot, and then as long with few claims: what a single one waits.
func hotAndCalm(ctx context.Context, r *race, c *contestant) (figures, error) {
	f, err := hot(ctx, r, c)
	if err != nil {
		return f, err
	}
	calm, err := r.hot(ctx, c, load.Plan{Rate: calmRate})
	f.CalmP50 = calm.P50
	f.Unexpected += calm.Unexpected
	return f, err
}

// newDatabase makes an empty database on a server, and returns a connection to it as its owner.
func newDatabase(ctx context.Context, server *localpg.Server, name string) (*pgx.Conn, error) {
	if err := commandOn(ctx, server, "create database "+name+" encoding 'UTF8' template template0"); err != nil {
		return nil, err
	}
	return pgx.Connect(ctx, server.URL(name))
}

// createOn makes a database with our schema on a server, and returns a connection to it as its owner.
func createOn(ctx context.Context, server *localpg.Server, name string) (*pgx.Conn, error) {
	conn, err := newDatabase(ctx, server, name)
	if err != nil {
		return nil, err
	}
	_, err = db.Apply(ctx, conn)
	return conn, err
}

// commandOn runs SQL on a server, outside of any database of the race.
func commandOn(ctx context.Context, server *localpg.Server, sql string) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}
