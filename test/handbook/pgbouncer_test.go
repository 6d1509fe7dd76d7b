//go:build dba

package handbook_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
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
	"scalable-coupon-system/pgstore"
)

// The service behind PgBouncer in transaction mode, with the settings of the handbook and no others: a sale over two services
// and many server connections is exact, and nobody is told anything but an outcome.
func TestPgBouncer(t *testing.T) {
	c := newCluster(t)
	admin := c.env("postgres", "postgres")
	must(t, admin, `psql -qc "create database coupons"`)
	coupons := c.env("postgres", "coupons")
	must(t, coupons, "coupond migrate")
	login := fromHandbook(t, "the login behind PgBouncer")
	if err := os.WriteFile(filepath.Join(workDir(t), "login.sql"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, coupons, `psql -qv ON_ERROR_STOP=1 -f login.sql && psql -qc "alter role coupon_login password 'coupon_login'"`)
	b := startPgBouncer(t, c)
	owner := connect(t, c.URL("coupons"))

	t.Run("sessions have what the service asks for", func(t *testing.T) {
		conn := connect(t, b.url("?default_query_exec_mode=exec"))
		if who := get[string](t, conn, "select current_user || ' for ' || session_user"); who != "coupon_service for coupon_login" {
			t.Error(who)
		}
		// For the default CLAIM_TIMEOUT of 5 s, as pgstore divides it.
		for name, want := range map[string]string{
			"search_path": "pg_catalog, pg_temp", "lock_timeout": "750ms", "statement_timeout": "1s", "idle_in_transaction_session_timeout": "5s",
		} {
			if got := get[string](t, conn, "select current_setting('"+name+"')"); got != want {
				t.Errorf("%s is %s, not %s", name, got, want)
			}
		}
	})

	// exec prepares nothing. The default prepares for each connection, which PgBouncer keeps track of from 1.21 on.
	modes := map[string]string{"exec": "?default_query_exec_mode=exec"}
	if b.tracksStatements {
		modes["default"] = ""
	}
	for mode, parameter := range modes {
		t.Run("a sale with exec mode "+mode, func(t *testing.T) {
			sale(t, owner, "sale "+mode, b.url(parameter))
		})
	}

	if !b.tracksStatements {
		// Why the default mode is not for these versions: what one server connection prepared, the next does not know.
		t.Run("prepared statements are lost", func(t *testing.T) {
			first, second := connect(t, b.url("")), connect(t, b.url("?default_query_exec_mode=exec"))
			const sql = "select public.coupon_schema_version()"
			get[int](t, first, sql)
			tx, err := second.Begin(t.Context()) // and has the server connection
			if err != nil {
				t.Fatal(err)
			}
			var version int
			err = first.QueryRow(t.Context(), sql).Scan(&version)
			if rollback := tx.Rollback(t.Context()); err == nil || rollback != nil || !strings.Contains(err.Error(), "SQLSTATE 26000") {
				t.Errorf("not 26000: %v, %v", err, rollback)
			}
		})
	}

	// locked claims a coupon that somebody has locked.
	locked := func(t *testing.T, coupon string, want error) {
		t.Helper()
		store := open(t, b.url("?default_query_exec_mode=exec"))
		if _, err := store.CreateCoupon(t.Context(), coupon, 1); err != nil {
			t.Fatal(err)
		}
		tx, err := owner.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "select from public.coupons where name = $1 for update", coupon); err != nil {
			t.Fatal(err)
		}
		_, err = store.Claim(t.Context(), "ann", coupon)
		if rollback := tx.Rollback(t.Context()); rollback != nil || !errors.Is(err, want) {
			t.Errorf("a claim of a locked coupon: %v; want %v; %v", err, want, rollback)
		}
		waitFor(t, "the claim afterwards", func() bool {
			status, err := store.Claim(t.Context(), "ann", coupon)
			return err == nil && (status == pgstore.Claimed || status == pgstore.AlreadyClaimed)
		})
	}
	t.Run("a coupon that somebody has locked", func(t *testing.T) {
		locked(t, "locked", pgstore.ErrUnavailable)
	})
	t.Run("a locked coupon without the time-outs", func(t *testing.T) {
		must(t, coupons, `psql -qc "alter role coupon_login reset lock_timeout" -c "alter role coupon_login reset statement_timeout"`)
		b.reconnect(t)
		locked(t, "locked without", pgstore.ErrOutcomeUnknown)
		must(t, coupons, `psql -qc "alter role coupon_login set lock_timeout = '750ms'" -c "alter role coupon_login set statement_timeout = '1s'"`)
		b.reconnect(t)
	})

	t.Run("a login that does not become coupon_service", func(t *testing.T) {
		must(t, coupons, `psql -qc "alter role coupon_login reset role"`)
		b.reconnect(t)
		err := open(t, b.url("?default_query_exec_mode=exec")).Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "not as coupon_service") {
			t.Errorf("the service is ready with the rights of its login: %v", err)
		}
		must(t, coupons, `psql -qc "alter role coupon_login set role = coupon_service"`)
		b.reconnect(t)
	})

	t.Run("the service itself", func(t *testing.T) {
		env := append(c.env("postgres", "coupons"), "DATABASE_URL="+b.url("?default_query_exec_mode=exec"))
		port := freePort(t)
		env = append(env, "LISTEN_ADDR=127.0.0.1:"+port)
		ctx, cancel := context.WithCancel(t.Context())
		serve := exec.CommandContext(ctx, filepath.Join(bin, "coupond"), "serve")
		serve.Env = env
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cancel(); _ = serve.Wait() }()
		waitFor(t, "coupond serve to be healthy", func() bool {
			_, err := shell(t, env, "coupond healthcheck")
			return err == nil
		})
	})

	t.Run("PostgreSQL away and back", func(t *testing.T) {
		store := open(t, b.url("?default_query_exec_mode=exec"))
		if _, err := store.CreateCoupon(t.Context(), "lasting", 10); err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		// PgBouncer takes the call and waits for a server: who gives up then cannot know what becomes of it.
		if status, err := store.Claim(t.Context(), "ann", "lasting"); !errors.Is(err, pgstore.ErrOutcomeUnknown) {
			t.Errorf("a claim while PostgreSQL is away: %s %v", status, err)
		}
		c.startAgain()
		waitFor(t, "claims to go on", func() bool {
			status, err := store.Claim(t.Context(), "bob", "lasting")
			return err == nil && (status == pgstore.Claimed || status == pgstore.AlreadyClaimed)
		})
	})
}

func open(t *testing.T, address string) *pgstore.Store {
	t.Helper()
	store, err := pgstore.Open(pgstore.Config{
		URL: address, MaxConns: 16, ClaimConcurrency: 4, ClaimQueue: 4096, ClaimTimeout: 5 * time.Second, SchemaVersion: db.Version(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// sale lets 2,000 users, each twice, claim 500 pieces by two services, while the coupon is read.
func sale(t *testing.T, owner *pgx.Conn, coupon, address string) {
	const users, stock = 2000, 500
	stores := []*pgstore.Store{open(t, address), open(t, address)}
	for _, store := range stores {
		if err := store.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{coupon, coupon + " beside"} {
		if status, err := stores[0].CreateCoupon(t.Context(), name, stock); err != nil || status != pgstore.Created {
			t.Fatal(status, err)
		}
	}

	var told [2]sync.Map // the user's outcomes, by service
	var over atomic.Bool
	var all, reader sync.WaitGroup
	reader.Go(func() {
		for !over.Load() {
			c, found, err := stores[0].Coupon(t.Context(), coupon)
			if err != nil || !found || c.RemainingAmount > stock {
				t.Errorf("a read: %v %v", found, err)
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
					t.Errorf("a claim: %v", err)
				}
				told[i].Store(user, status)
				if _, err := store.Claim(t.Context(), user, coupon+" beside"); err != nil {
					t.Errorf("a claim: %v", err)
				}
			})
		}
	}
	all.Wait()
	over.Store(true)
	reader.Wait()

	won := 0
	for u := range users {
		first, _ := told[0].Load(strconv.Itoa(u))
		second, _ := told[1].Load(strconv.Itoa(u))
		outcomes := fmt.Sprintf("%s %s", first, second)
		switch outcomes {
		case "claimed already_claimed", "already_claimed claimed":
			won++
		case "out_of_stock out_of_stock":
		default:
			t.Errorf("user %d was told %s", u, outcomes)
		}
	}
	if won != stock {
		t.Errorf("%d won, not %d", won, stock)
	}
	booksEqual(t, owner, coupon, stock)
	booksEqual(t, owner, coupon+" beside", stock)
	whole, found, err := stores[1].Coupon(t.Context(), coupon)
	if err != nil || !found || whole.RemainingAmount != 0 {
		t.Errorf("the coupon in the end: %+v %v %v", whole, found, err)
	}
}

// pgBouncer is one that runs.
type pgBouncer struct {
	port             string
	tracksStatements bool
	console          *pgx.Conn
}

// url is the connection string of the handbook's login.
func (b *pgBouncer) url(parameters string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("coupon_login", "coupon_login"), Host: "127.0.0.1:" + b.port, Path: "/coupons",
	}).String() + parameters
}

// reconnect has PgBouncer make its server connections anew.
func (b *pgBouncer) reconnect(t *testing.T) {
	t.Helper()
	for _, command := range []string{"reconnect coupons", "wait_close coupons"} {
		if _, err := b.console.Exec(t.Context(), command, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
}

var pgBouncerVersion = regexp.MustCompile(`PgBouncer (\d+)\.(\d+)`)

// startPgBouncer starts it with the handbook's file, but for the server's port and its own.
func startPgBouncer(t *testing.T, c *cluster) *pgBouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; exec.CommandContext(t.Context(), program, "--version").Run() != nil {
			t.Fatal("there is no pgbouncer (Debian: apt-get install pgbouncer)")
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

	dir, err := os.MkdirTemp("", "coupon-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ini := fromHandbook(t, "pgbouncer.ini")
	for from, to := range map[string]string{
		"port=5432":          "port=" + strconv.Itoa(c.Port()),
		"listen_port = 6432": "listen_port = " + b.port,
		"auth_file = /etc/pgbouncer/userlist.txt": "auth_file = " + dir + "/userlist.txt",
	} {
		if !strings.Contains(ini, from) {
			t.Fatalf("the handbook's pgbouncer.ini has no %q", from)
		}
		ini = strings.ReplaceAll(ini, from, to)
	}
	// Beside the handbook: no socket where others have theirs, a console, and statements where they are kept track of.
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
	if uid == 0 { // which it refuses
		arguments = append(arguments, "--user=nobody")
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ = strconv.Atoi(nobody.Uid)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, name), uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}

	log := new(strings.Builder)
	cmd := exec.Command(program, append(arguments, filepath.Join(dir, "pgbouncer.ini"))...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("pgbouncer said:\n%s", log)
		}
	})
	console := "postgres://console:console@127.0.0.1:" + b.port + "/pgbouncer?default_query_exec_mode=simple_protocol"
	waitFor(t, "pgbouncer to answer", func() bool {
		b.console, err = pgx.Connect(t.Context(), console)
		return err == nil
	})
	t.Cleanup(func() { _ = b.console.Close(context.Background()) })
	return b
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
