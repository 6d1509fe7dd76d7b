package pgstore

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"scalable-coupon-system/internal/wait"
)

// refusingServer returns the URL of a server that answers each connection with an error.
func refusingServer(t *testing.T, refusal *pgproto3.ErrorResponse) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); running.Wait() })
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			backend := pgproto3.NewBackend(conn, conn)
			if _, err := backend.ReceiveStartupMessage(); err == nil {
				backend.Send(refusal)
				_ = backend.Flush()
			}
			_ = conn.Close()
		}
	})
	return "postgres://u:s3cr3t@" + listener.Addr().String() + "/d?sslmode=disable"
}

// A pooler that refuses a parameter of the session is reported with the parameter, and nothing is
// committed.
func TestReady_poolerRefusesParameter(t *testing.T) {
	t.Parallel()
	// As PgBouncer answers.
	url := refusingServer(t, &pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: role"})
	s := openStore(t, url)
	wantReady(t, s, "unsupported startup parameter: role", "pooler", "ignore role, search_path", "default_transaction_read_only")
	s.wantClaim(t, "u", "c", ErrUnavailable)
}

// If pg_hba.conf has no entry for unencrypted connections, the reason does not blame the password.
func TestReady_encryptionRequired(t *testing.T) {
	t.Parallel()
	s := newServerStore(t)
	name, url := s.newLogin(t, `in role coupon_service`)
	s.exec(t, `copy (values ('hostssl all `+name+` all scram-sha-256'), ('host all postgres all scram-sha-256'), ('local all all scram-sha-256'))
		to program 'cat > pg_hba.conf'`)
	s.exec(t, `select pg_reload_conf()`)
	store := openStore(t, url)
	wait.For(t, "the server to refuse the login", func() bool {
		return !isReady(t, store)
	})
	wantReady(t, store, "refuses the login", "pg_hba.conf", "no encryption", "sslmode")
	if _, err := store.Ready(t.Context()); err != nil && strings.Contains(err.Error(), "password") {
		t.Errorf("%q blames the password", err)
	}
	wantReady(t, openStore(t, withParam(url, "sslmode", "require")), "does not offer TLS")
}

func TestReady_unknownHost(t *testing.T) {
	t.Parallel()
	wantReady(t, openStore(t, "postgres://u:s3cr3t@127.0.0.1:1/d"), "does not answer", "refused", "port")
	wantReady(t, openStore(t, "postgres://u:s3cr3t@/d?host=/nowhere"), "does not answer", "socket")
}

func TestConnectProblem(t *testing.T) {
	t.Parallel()
	server := func(code, message, routine string) error {
		return fmt.Errorf("failed to connect: %w", &pgconn.PgError{
			SeverityUnlocalized: "FATAL", Code: code, Message: message, Routine: routine,
		})
	}
	for _, test := range []struct {
		err  error
		want []string
	}{
		{server("22023", `Rolle »coupon_service« existiert nicht`, ""), []string{"has no role coupon_service", "coupond migrate"}},
		{server("22023", `invalid value for parameter "TimeZone": "Mars/Phobos"`, ""), []string{`"TimeZone": "Mars/Phobos"`, "connection string"}},
		{server("42704", `unrecognized configuration parameter "gssencmode"`, ""), []string{`"gssencmode"`, "remove it"}},
		{server("55P02", `parameter "port" cannot be changed without restarting the server`, ""), []string{`"port"`, "remove it"}},
		{server("42501", `permission denied to set role "coupon_service"`, ""), []string{"grant coupon_service"}},
		{server("42501", `permission denied for database "coupon_service_db"`, ""), []string{"permission denied for database"}},
		{server("28000", `no pg_hba.conf entry for host "::1", user "u", database "d", no encryption`, "ClientAuthentication"), []string{"no encryption", "sslmode"}},
		{server("28000", `role "u" does not exist`, "InitializeSessionUserId"), []string{`role "u" does not exist`, "check the user"}},
		{server("28P01", `password authentication failed for user "u"`, "auth_failed"), []string{"check the user and the password"}},
		{server("3D000", `database "d" does not exist`, ""), []string{"no database", `"d"`}},
		{server("53300", `sorry, too many clients already`, ""), []string{"no connection left", "too many clients", "DB_MAX_CONNS"}},
		{server("57P03", `the database system is not yet accepting connections`, ""), []string{"not yet accepting"}},
		{server("08P01", `unsupported startup parameter in options: lock_timeout`, ""), []string{"pooler", "lock_timeout", "ignore"}},
		{server("08P01", "no such\n\tdatabase: d", ""), []string{"no such database: d"}},
		{server("53200", "out of memory "+strings.Repeat("x", 1000), ""), []string{"refuses the connection: out of memory", "…"}},
		{errors.New("anything else, with a s3cr3t"), []string{"does not answer"}},
	} {
		got := ConnectProblem(test.err)
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%v: %q does not contain %q", test.err, got, want)
			}
		}
		if strings.ContainsAny(got, "\n\t") || strings.Contains(got, "s3cr3t") || len(got) > 600 {
			t.Errorf("%v: %q", test.err, got)
		}
	}
}
