//go:build dba

package handbook_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/wait"
	"scalable-coupon-system/pgstore"
)

// TestPgBouncer runs the service behind PgBouncer in transaction mode, with the settings in
// docs/dba.md and no others. A sale with two services and many server connections grants exactly
// the stock, and every claim gets an outcome.
func TestPgBouncer(t *testing.T) {
	c := newCluster(t)
	admin := c.env("postgres", "postgres")
	mustRun(t, admin, `psql -qc "create database coupond"`)
	coupons := c.env("postgres", "coupond")
	mustRun(t, coupons, "coupond migrate")
	login := fromHandbook(t, "the login behind PgBouncer")
	must(t, os.WriteFile(filepath.Join(workDir(t), "login.sql"), []byte(login), 0o600))
	mustRun(t, coupons, `psql -qv ON_ERROR_STOP=1 -f login.sql && psql -qc "alter role coupon_login password 'coupon_login'"`)
	b := startPgBouncer(t, c)
	owner := connect(t, c.URL("coupond"))

	t.Run("session settings", func(t *testing.T) {
		conn := connect(t, b.url("?default_query_exec_mode=exec"))
		if users := get[string](t, conn, "select current_user || ' for ' || session_user"); users != "coupon_service for coupon_login" {
			t.Error(users)
		}
		// What pgstore sets for the default CLAIM_TIMEOUT of 5 s.
		for name, want := range map[string]string{
			"search_path": "pg_catalog, pg_temp", "lock_timeout": "500ms", "statement_timeout": "1s", "idle_in_transaction_session_timeout": "5s",
			"client_encoding": "UTF8", "client_min_messages": "warning", "synchronous_commit": "on",
			"default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
		} {
			if got := get[string](t, conn, "select current_setting('"+name+"')"); got != want {
				t.Errorf("%s is %s, not %s", name, got, want)
			}
		}
		if problem := get[*string](t, conn, "select coupond.session_problem()"); problem != nil {
			t.Error(*problem)
		}
	})

	// The mode exec prepares no statements. The default mode prepares them on each connection, which
	// PgBouncer supports from version 1.21 on.
	modes := map[string]string{"exec": "?default_query_exec_mode=exec"}
	if b.tracksStatements {
		modes["default"] = ""
	}
	for mode, parameter := range modes {
		t.Run("sale with exec mode "+mode, func(t *testing.T) {
			sale(t, owner, "sale "+mode, b.url(parameter))
		})
	}

	if !b.tracksStatements {
		// The default mode does not work: a statement is prepared on one server connection and executed
		// on another.
		t.Run("default mode without statement tracking", func(t *testing.T) {
			first, second := connect(t, b.url("")), connect(t, b.url("?default_query_exec_mode=exec"))
			const sql = "select coupond.coupon_schema_version()"
			get[int](t, first, sql)
			tx, err := second.Begin(t.Context()) // which occupies the server connection
			must(t, err)
			var version int
			err = first.QueryRow(t.Context(), sql).Scan(&version)
			if rollback := tx.Rollback(t.Context()); err == nil || rollback != nil || !strings.Contains(err.Error(), "SQLSTATE 26000") {
				t.Errorf("got %v, want SQLSTATE 26000; rollback: %v", err, rollback)
			}
		})
	}

	// claimLocked claims a coupon that another session has locked.
	claimLocked := func(t *testing.T, coupon string, want error) {
		t.Helper()
		store := open(t, b.url("?default_query_exec_mode=exec"))
		_, err := store.CreateCoupon(t.Context(), coupon, 1)
		must(t, err)
		tx, err := owner.Begin(t.Context())
		must(t, err)
		if _, err := tx.Exec(t.Context(), "select from coupond.coupons where name = $1 for update", coupon); err != nil {
			t.Fatal(err)
		}
		_, err = store.Claim(t.Context(), "ann", coupon)
		if rollback := tx.Rollback(t.Context()); rollback != nil || !errors.Is(err, want) {
			t.Errorf("claim of a locked coupon: %v; want %v; rollback: %v", err, want, rollback)
		}
		claimUntilGranted(t, store, "ann", coupon)
	}
	t.Run("locked coupon", func(t *testing.T) {
		claimLocked(t, "locked", pgstore.ErrUnavailable)
	})
	alterLogin := func(changes ...string) {
		t.Helper()
		for _, change := range changes {
			mustRun(t, coupons, `psql -qc "alter role coupon_login `+change+`"`)
		}
		b.reconnect(t)
	}
	t.Run("locked coupon without time-outs", func(t *testing.T) {
		alterLogin("reset lock_timeout", "reset statement_timeout")
		claimLocked(t, "locked without", pgstore.ErrOutcomeUnknown)
		alterLogin("set lock_timeout = '500ms'", "set statement_timeout = '1s'")
	})
	for _, test := range []struct{ change, problem, back string }{
		{"reset role", "not those of coupon_service", "set role = coupon_service"},
		{"set default_transaction_isolation = serializable", "default_transaction_isolation is serializable",
			"set default_transaction_isolation = 'read committed'"},
	} {
		t.Run("login with "+test.change, func(t *testing.T) {
			alterLogin(test.change)
			_, err := open(t, b.url("?default_query_exec_mode=exec")).Ready(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.problem) {
				t.Errorf("Ready: %v, want an error that contains %q", err, test.problem)
			}
			alterLogin(test.back)
		})
	}

	t.Run("coupond serve", func(t *testing.T) {
		env := append(c.env("postgres", "coupond"), "DATABASE_URL="+b.url("?default_query_exec_mode=exec"), "LISTEN_ADDR=127.0.0.1:"+freePort(t))
		ctx, cancel := context.WithCancel(t.Context())
		serve := exec.CommandContext(ctx, filepath.Join(bin, "coupond"), "serve")
		serve.Env = env
		must(t, serve.Start())
		defer func() { cancel(); _ = serve.Wait() }()
		wait.For(t, "coupond serve to be healthy", func() bool {
			_, err := shell(t, env, "coupond healthcheck")
			return err == nil
		})
	})

	t.Run("PostgreSQL restarted", func(t *testing.T) {
		store := open(t, b.url("?default_query_exec_mode=exec"))
		_, err := store.CreateCoupon(t.Context(), "restarted", 10)
		must(t, err)
		must(t, c.Stop())
		// PgBouncer accepts the call and waits for a server connection, so the outcome of a call that
		// times out is unknown.
		if status, err := store.Claim(t.Context(), "ann", "restarted"); !errors.Is(err, pgstore.ErrOutcomeUnknown) {
			t.Errorf("claim while PostgreSQL is stopped: %s %v", status, err)
		}
		must(t, c.Start())
		claimUntilGranted(t, store, "bob", "restarted")
	})
}

// claimUntilGranted retries a claim until the user has the coupon. It may take 15 s until PgBouncer
// reconnects to PostgreSQL (server_login_retry).
func claimUntilGranted(t *testing.T, store *pgstore.Store, user, coupon string) {
	t.Helper()
	wait.For(t, "a claim of "+coupon+" for "+user, func() bool {
		status, err := store.Claim(t.Context(), user, coupon)
		return err == nil && (status == pgstore.Claimed || status == pgstore.AlreadyClaimed)
	})
}

func open(t *testing.T, address string) *pgstore.Store {
	t.Helper()
	store, err := pgstore.Open(pgstore.Config{
		URL: address, MaxConns: 16, ClaimConcurrency: 4, ClaimQueue: 4096, ClaimTimeout: 5 * time.Second, SchemaVersion: db.Version(),
	})
	must(t, err)
	t.Cleanup(store.Close)
	return store
}

// sale sells a stock of 500 to 2,000 users. Each claims through both services, while the coupon is
// read.
func sale(t *testing.T, owner *pgx.Conn, coupon, address string) {
	const users, stock = 2000, 500
	stores := []*pgstore.Store{open(t, address), open(t, address)}
	for _, store := range stores {
		if _, err := store.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	other := coupon + ", other coupon"
	for _, name := range []string{coupon, other} {
		if status, err := stores[0].CreateCoupon(t.Context(), name, stock); err != nil || status != pgstore.Created {
			t.Fatal(status, err)
		}
	}

	var outcomes [2]sync.Map // by service, then by user
	var done atomic.Bool
	var all, reader sync.WaitGroup
	reader.Go(func() {
		for !done.Load() {
			c, found, err := stores[0].Coupon(t.Context(), coupon)
			if err != nil || !found || c.RemainingAmount > stock {
				t.Errorf("read: %v %v", found, err)
				return
			}
		}
	})
	for i, store := range stores {
		for u := range users {
			all.Go(func() {
				user := strconv.Itoa(u)
				status, err := store.Claim(t.Context(), user, coupon)
				if err != nil {
					t.Errorf("claim: %v", err)
				}
				outcomes[i].Store(user, status)
				if _, err := store.Claim(t.Context(), user, other); err != nil {
					t.Errorf("claim: %v", err)
				}
			})
		}
	}
	all.Wait()
	done.Store(true)
	reader.Wait()

	won := 0
	for u := range users {
		first, _ := outcomes[0].Load(strconv.Itoa(u))
		second, _ := outcomes[1].Load(strconv.Itoa(u))
		switch pair := fmt.Sprintf("%s %s", first, second); pair {
		case "claimed already_claimed", "already_claimed claimed":
			won++
		case "out_of_stock out_of_stock":
		default:
			t.Errorf("user %d: %s", u, pair)
		}
	}
	if won != stock {
		t.Errorf("%d users have the coupon, want %d", won, stock)
	}
	checkClaims(t, owner, coupon, stock)
	checkClaims(t, owner, other, stock)
	whole, found, err := stores[1].Coupon(t.Context(), coupon)
	if err != nil || !found || whole.RemainingAmount != 0 {
		t.Errorf("the coupon after the sale: %+v %v %v", whole, found, err)
	}
}

// pgBouncer is a running PgBouncer.
type pgBouncer struct {
	port             string
	tracksStatements bool
	console          *pgx.Conn
}

// url returns a connection string for the login of docs/dba.md.
func (b *pgBouncer) url(parameters string) string {
	return "postgres://coupon_login:coupon_login@127.0.0.1:" + b.port + "/coupond" + parameters
}

// reconnect makes PgBouncer replace its server connections.
func (b *pgBouncer) reconnect(t *testing.T) {
	t.Helper()
	for _, command := range []string{"reconnect coupond", "wait_close coupond"} {
		if _, err := b.console.Exec(t.Context(), command, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
}

var pgBouncerVersion = regexp.MustCompile(`PgBouncer (\d+)\.(\d+)`)

// startPgBouncer starts PgBouncer with the pgbouncer.ini of docs/dba.md, in which it replaces only
// ports and paths.
func startPgBouncer(t *testing.T, c *cluster) *pgBouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; exec.CommandContext(t.Context(), program, "--version").Run() != nil {
			t.Fatal("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
		}
	}
	version, err := exec.CommandContext(t.Context(), program, "--version").Output()
	match := pgBouncerVersion.FindSubmatch(version)
	if err != nil || match == nil {
		t.Fatalf("pgbouncer --version: %v %s", err, version)
	}
	major, _ := strconv.Atoi(string(match[1]))
	minor, _ := strconv.Atoi(string(match[2]))
	b := &pgBouncer{port: freePort(t), tracksStatements: major > 1 || minor >= 21}
	t.Logf("%s", match[0])

	// It is given to another user. Unlike that of t.TempDir, its path is open to all.
	dir, err := temporary("coupon-pgbouncer-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ini := fromHandbook(t, "pgbouncer.ini")
	for from, to := range map[string]string{
		"port=5432":          "port=" + strconv.Itoa(c.Port()),
		"listen_port = 6432": "listen_port = " + b.port,
		"auth_file = /etc/pgbouncer/userlist.txt": "auth_file = " + dir + "/userlist.txt",
	} {
		if !strings.Contains(ini, from) {
			t.Fatalf("the pgbouncer.ini of docs/dba.md lacks %q", from)
		}
		ini = strings.ReplaceAll(ini, from, to)
	}
	// Not in docs/dba.md: no unix socket, a user for the console, and tracking of prepared statements
	// if supported.
	ini += "unix_socket_dir =\nadmin_users = console\n"
	if b.tracksStatements {
		ini += "max_prepared_statements = 100\n"
	}
	files := map[string]string{
		"pgbouncer.ini": ini,
		"userlist.txt":  `"coupon_login" "coupon_login"` + "\n" + `"console" "console"` + "\n",
	}
	arguments := []string{"--quiet"}
	uid := os.Getuid()
	if uid == 0 { // PgBouncer refuses to run as root
		arguments = append(arguments, "--user=nobody")
		account, err := user.Lookup("nobody")
		must(t, err)
		uid, _ = strconv.Atoi(account.Uid)
	}
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		must(t, os.Chown(filepath.Join(dir, name), uid, -1))
	}
	must(t, os.Chown(dir, uid, -1))

	log := new(strings.Builder)
	cmd := exec.Command(program, append(arguments, filepath.Join(dir, "pgbouncer.ini"))...)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("output of pgbouncer:\n%s", log)
		}
	})
	console := "postgres://console:console@127.0.0.1:" + b.port + "/pgbouncer?default_query_exec_mode=simple_protocol"
	wait.For(t, "pgbouncer to answer", func() bool {
		b.console, err = pgx.Connect(t.Context(), console)
		return err == nil
	})
	t.Cleanup(func() { _ = b.console.Close(context.Background()) })
	return b
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	must(t, err)
	return port
}
