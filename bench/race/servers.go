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

// The workloads of this file use several PostgreSQL servers: shards behind a proxy (deploy/shards),
// and standbys (deploy/ha). All servers run on this machine, so the results show the cost of a
// claim by process, not the gain from more machines, and the network between them costs almost
// nothing.

// site is the servers that store the coupons of a service.
type site struct {
	url      string            // of the database that the service connects to
	database []*localpg.Server // the primary, or the shards
	proxies  []*localpg.Server
	standbys []*localpg.Server
}

// errSkipped is wrapped by the error of a workload that this machine cannot run.
var errSkipped = errors.New("skipped")

// servers are the additional PostgreSQL servers of one workload.
type servers struct {
	machine *machine
	running []*localpg.Server
	sites   []string // names of the sites that it has added to machine
}

// start starts a server in a folder of that name below the machine's folder. If the folder contains
// a cluster, that is started.
func (s *servers) start(ctx context.Context, folder string) (*localpg.Server, error) {
	server, err := localpg.Start(ctx, localpg.Options{
		Dir:      filepath.Join(s.machine.dir, folder),
		Log:      os.Stderr,
		BinDir:   s.machine.postgres.BinDir(),
		Settings: map[string]string{"max_wal_size": "8GB", "track_io_timing": "off"},
	})
	if err == nil {
		s.running = append(s.running, server)
	}
	return server, err
}

// addSite makes at the site of the entries that use the database of that name.
func (s *servers) addSite(name string, at site) {
	s.machine.sites[name] = at
	s.sites = append(s.sites, name)
}

// close stops the servers and removes their data and their sites.
func (s *servers) close(ctx context.Context) error {
	var errs []error
	for _, name := range s.sites {
		delete(s.machine.sites, name)
	}
	// In reverse order, because a primary waits for its standbys.
	for _, server := range slices.Backward(s.running) {
		errs = append(errs, server.Kill(), localpg.Remove(ctx, server.Dir()))
	}
	return errors.Join(errs...)
}

// Names of the entries of workload "shards", and of their databases.
const (
	oneShard   = "a proxy, 1 shard"
	fourShards = "a proxy, 4 shards"
	partitions = 64
)

// prepareShards sets up a proxy with two databases: one for a single shard, which is a database of
// the race's own server, and one for four shards, which are servers of their own.
func prepareShards(ctx context.Context, r *race) (func() error, error) {
	m := r.machine
	s := &servers{machine: m}
	cleanup := func() error {
		ctx := context.WithoutCancel(ctx)
		err := s.close(ctx)
		return errors.Join(err,
			m.exec(ctx, "drop database if exists shard with (force)"),
			m.exec(ctx, "drop role if exists coupon_proxy_login"))
	}
	var available bool
	err := m.conn.QueryRow(ctx, "select exists (select from pg_available_extensions where name = 'plproxy')").Scan(&available)
	switch {
	case err != nil:
		return cleanup, err
	case !available:
		return cleanup, fmt.Errorf("%w: PL/Proxy is missing (Debian: postgresql-15-plproxy)", errSkipped)
	}
	proxy, err := s.start(ctx, "proxy")
	if err != nil {
		return cleanup, err
	}
	four := make([]*localpg.Server, 4)
	for i := range four {
		if four[i], err = s.start(ctx, "shard-"+strconv.Itoa(i)); err != nil {
			return cleanup, err
		}
	}
	password := rand.Text() // of the proxy's role on the shards
	for name, shards := range map[string][]*localpg.Server{oneShard: {m.postgres}, fourShards: four} {
		for i, shard := range shards {
			if err := createShard(ctx, shard, password, i, len(shards)); err != nil {
				return cleanup, err
			}
		}
		database := "proxy_of_" + strconv.Itoa(len(shards))
		if err := createProxy(ctx, proxy, password, database, shards); err != nil {
			return cleanup, err
		}
		s.addSite(name, site{url: proxy.URL(database), database: shards, proxies: []*localpg.Server{proxy}})
	}
	return cleanup, nil
}

// createShard creates the database of shard i of n, as deploy/shards/shard.sql does, but without
// its time-outs.
func createShard(ctx context.Context, server *localpg.Server, password string, i, n int) error {
	conn, err := createDatabase(ctx, server, "shard")
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		create role coupon_proxy_login login password '%s' in role coupon_service;
		insert into coupond.shard (partitions, owned)
		select %d, array_agg(p)
		from generate_series(%d, %[2]d - 1, %[4]d) as p`, password, partitions, i, n))
	return errors.Join(err, conn.Close(ctx))
}

// createProxy creates a database that is a proxy for the shards.
func createProxy(ctx context.Context, server *localpg.Server, password, database string, shards []*localpg.Server) error {
	conn, err := createEmptyDatabase(ctx, server, database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the statements before it have committed, or returned their error
	if err := db.ApplyProxy(ctx, conn, db.Options{}); err != nil {
		return err
	}
	options := make([]string, partitions)
	for p := range options {
		options[p] = fmt.Sprintf("p%d 'host=127.0.0.1 port=%d dbname=shard'", p, shards[p%len(shards)].Port())
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`
		create server coupond foreign data wrapper plproxy options (%s);
		grant usage on foreign server coupond to coupon_proxy;
		create user mapping for coupon_proxy server coupond options (user 'coupon_proxy_login', password '%s')`,
		strings.Join(options, ", "), password))
	return err
}

// Names of the entries of workload "standby", and of their databases.
const (
	noStandby    = "no standby"
	asynchronous = "1, asynchronous"
	synchronous  = "1, synchronous"
	anyOfTwo     = "2, any 1 synchronous"
)

// standbys is the number of standbys of each entry, and the standbys that a commit waits for.
var standbys = []struct {
	name  string
	count int
	wait  string // synchronous_standby_names
}{
	{noStandby, 0, ""},
	{asynchronous, 1, ""},
	{synchronous, 1, "1 (*)"},
	{anyOfTwo, 2, "ANY 1 (*)"},
}

// prepareStandbys sets up a primary with its standbys for each entry. A commit that waits for a
// standby waits until it is on the standby's disk (synchronous_commit = on).
func prepareStandbys(ctx context.Context, r *race) (func() error, error) {
	s := &servers{machine: r.machine}
	cleanup := func() error { return s.close(context.WithoutCancel(ctx)) }
	baseBackup := filepath.Join(r.machine.postgres.BinDir(), "pg_basebackup")
	if _, err := exec.LookPath(baseBackup); err != nil {
		return cleanup, fmt.Errorf("%w: %w", errSkipped, err)
	}
	for i, e := range standbys {
		at, err := s.startReplicated(ctx, baseBackup, i, e.count, e.wait)
		if err != nil {
			return cleanup, err
		}
		s.addSite(e.name, at)
	}
	return cleanup, nil
}

// startReplicated starts primary i with count standbys. wait is its synchronous_standby_names.
func (s *servers) startReplicated(ctx context.Context, baseBackup string, i, count int, wait string) (site, error) {
	primary, err := s.start(ctx, fmt.Sprintf("primary-%d", i))
	if err != nil {
		return site{}, err
	}
	conn, err := createDatabase(ctx, primary, database)
	if err != nil {
		return site{}, err
	}
	defer func() { _ = conn.Close(ctx) }() // no transaction is open
	at := site{url: primary.URL(database), database: []*localpg.Server{primary}}
	for n := range count {
		folder := fmt.Sprintf("standby-%d-%d", i, n)
		if err := copyServer(ctx, baseBackup, primary, filepath.Join(s.machine.dir, folder)); err != nil {
			return site{}, err
		}
		standby, err := s.start(ctx, folder)
		if err != nil {
			return site{}, err
		}
		at.standbys = append(at.standbys, standby)
	}
	return at, setStandbys(ctx, conn, wait, count)
}

// copyServer creates a folder with the data of a standby of primary.
func copyServer(ctx context.Context, baseBackup string, primary *localpg.Server, folder string) error {
	if err := os.Mkdir(folder, 0o711); err != nil {
		return err
	}
	home, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer func() { _ = home.Close() }() // WriteFile below has closed its file
	out, err := exec.CommandContext(ctx, baseBackup, "--pgdata", filepath.Join(folder, "data"),
		"--dbname", primary.URL(""), "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream").CombinedOutput()
	if err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	password, err := os.ReadFile(filepath.Join(primary.Dir(), "pgpass"))
	if err != nil {
		return err
	}
	return home.WriteFile("pgpass", password, 0o600)
}

// setStandbys sets synchronous_standby_names of primary, and returns when count standbys replicate
// that way.
func setStandbys(ctx context.Context, primary *pgx.Conn, names string, count int) error {
	for _, sql := range []string{"alter system set synchronous_standby_names = '" + names + "'", "select pg_reload_conf()"} {
		if _, err := primary.Exec(ctx, sql); err != nil {
			return err
		}
	}
	for {
		var connected int
		if err := primary.QueryRow(ctx, `
			select count(*)
			from pg_stat_replication
			where state = 'streaming'
			  and (sync_state = 'async') = ($1 = '')`, names).Scan(&connected); err != nil || connected == count {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lowRate is a number of claims per second at which claims do not wait for each other.
const lowRate = 200

// hotThenLowRate is hot, followed by a run of the same duration at lowRate, which measures the
// latency of a claim alone.
func hotThenLowRate(ctx context.Context, r *race, s *service) (figures, error) {
	f, err := hot(ctx, r, s)
	if err != nil {
		return f, err
	}
	low, err := r.hot(ctx, s, load.Plan{Rate: lowRate})
	f.LowRateP50 = low.P50
	f.Unexpected += low.Unexpected
	return f, err
}

// createEmptyDatabase creates an empty database on a server, and returns a connection to it as its
// owner.
func createEmptyDatabase(ctx context.Context, server *localpg.Server, name string) (*pgx.Conn, error) {
	if err := execOn(ctx, server, "create database "+name+" encoding 'UTF8' template template0"); err != nil {
		return nil, err
	}
	return pgx.Connect(ctx, server.URL(name))
}

// createDatabase creates a database with our schema on a server, and returns a connection to it as
// its owner.
func createDatabase(ctx context.Context, server *localpg.Server, name string) (*pgx.Conn, error) {
	conn, err := createEmptyDatabase(ctx, server, name)
	if err != nil {
		return nil, err
	}
	_, err = db.Apply(ctx, conn, db.Options{})
	return conn, err
}

// execOn runs SQL in the database postgres of a server.
func execOn(ctx context.Context, server *localpg.Server, sql string) error {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}
