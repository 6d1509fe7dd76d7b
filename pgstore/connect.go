package pgstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
)

// sessionParams are the names of the settings that each session gets at connect (parsePoolConfig).
// A pooler must pass them on, or ignore them, and then the login must have them.
var sessionParams = []string{
	"role", "search_path", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout",
	"client_min_messages", "default_transaction_isolation", "default_transaction_read_only",
}

// ConnectProblem returns why a connection to PostgreSQL could not be made, and what to do about it:
// one sentence without a password, with the server's own reason if it gave one. err is an error of
// pgx.
func ConnectProblem(err error) string {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return networkProblem(err)
	}
	reason := serverReason(pgErr)
	// Only the text of an error says which parameter, or which role, it is about. The names in it
	// are not translated.
	aboutRole := ownRole.MatchString(pgErr.Message)
	switch pgErr.Code {
	case pgerrcode.InvalidParameterValue:
		if aboutRole {
			return "the database has no role " + serviceRole + ": run coupond migrate"
		}
		return "the database refuses a parameter of the session: " + reason + "; correct it in the connection string"
	case pgerrcode.UndefinedObject, pgerrcode.CantChangeRuntimeParam:
		return "the database refuses a parameter of the session: " + reason + "; remove it from the connection string"
	case pgerrcode.InsufficientPrivilege:
		if aboutRole {
			return "the database does not let the login become " + serviceRole +
				": run coupond migrate, or grant " + serviceRole + " to the login"
		}
		return "the database refuses the login: " + reason + "; grant it the privilege"
	case pgerrcode.InvalidPassword:
		return "the database refuses the login: " + reason + "; check the user and the password"
	case pgerrcode.InvalidAuthorizationSpecification:
		if pgErr.Routine == "ClientAuthentication" {
			return "the database refuses the login: " + reason + "; check sslmode, or add a line to pg_hba.conf"
		}
		return "the database refuses the login: " + reason + "; check the user and pg_hba.conf"
	case pgerrcode.InvalidCatalogName:
		return "the database server has no database of that name: " + reason
	case pgerrcode.TooManyConnections:
		return "the database has no connection left: " + reason + "; lower DB_MAX_CONNS, or raise the limit"
	case pgerrcode.CannotConnectNow:
		return "the database is starting up or shutting down: " + reason
	case pgerrcode.ProtocolViolation:
		if strings.Contains(pgErr.Message, "startup parameter") {
			return "the pooler refuses a parameter of the session: " + reason +
				"; let it ignore " + strings.Join(sessionParams, ", ") + ", and set them for the login"
		}
	}
	return "the database or a pooler refuses the connection: " + reason
}

var ownRole = regexp.MustCompile(`\b` + serviceRole + `\b`)

// networkProblem explains why no server answered.
func networkProblem(err error) string {
	const silent = "the database does not answer"
	if unknown, ok := errors.AsType[*net.DNSError](err); ok && unknown.IsNotFound {
		return fmt.Sprintf("the host of the database, %q, is not known", unknown.Name)
	}
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the certificate of the database is not accepted: " + oneLine(untrusted.Err.Error()) + "; check sslrootcert and the host name"
	}
	switch {
	case errors.Is(err, errStandby):
		return "the database is a standby (in recovery), which cannot make claims; check the host, or wait until it is promoted"
	case errors.Is(err, pgconn.ErrReadOnlyConnection), errors.Is(err, pgconn.ErrStandbyConnection):
		return "the database is read-only or a standby, which target_session_attrs does not allow"
	case errors.Is(err, pgconn.ErrReadWriteConnection), errors.Is(err, pgconn.ErrPrimaryConnection):
		return "the database is not what target_session_attrs asks for; claims need read-write or primary"
	case errors.Is(err, os.ErrNotExist):
		return silent + ": its Unix socket does not exist; check the host and the port"
	case errors.Is(err, syscall.ECONNREFUSED):
		return silent + ": the connection is refused; check the host and the port"
	// pgx has no error value for it.
	case strings.Contains(fmt.Sprint(err), "server refused TLS connection"):
		return "the database does not offer TLS, which sslmode requires; enable it there, or change sslmode"
	}
	return silent
}

// serverReason returns the text of an error of the server: one line of bounded length.
func serverReason(err *pgconn.PgError) string {
	reason := oneLine(err.Message)
	if err.Detail != "" {
		reason += " (" + oneLine(err.Detail) + ")"
	}
	return reason
}

func oneLine(text string) string {
	const maxRunes = 200
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) > maxRunes {
		return string(runes[:maxRunes]) + " …"
	}
	return string(runes)
}

// serverKind is whether a session is on a PL/Proxy proxy. Sessions on a proxy have other
// parameters, and its errors prove less (outcome.go).
type serverKind int

const (
	kindUnknown serverKind = iota // our functions are not installed there
	kindServer
	kindProxy
)

// errStandby: the server is in recovery. It would answer with old state, and it cannot commit.
var errStandby = errors.New("the database is a standby")

// prepareSQL makes commits of the session wait for the disk, and for the synchronous standbys if
// there are any. It is not a parameter of the connection, because that would also lower
// remote_apply. And it returns what must be known of the server.
//
// PL/Proxy forwards its session's statement_timeout to the shard as a cancel request. A silent
// shard does not read it, and the session hangs; a shard that waits for its synchronous standby
// stops waiting and returns a claim that no standby has (ADR 0013). So on a proxy the shard's own
// time-outs end long calls, or we close the connection, which the proxy notices by
// client_connection_check_interval.
const prepareSQL = `
select pg_catalog.set_config('synchronous_commit', 'on', false)
where pg_catalog.current_setting('synchronous_commit') in ('off', 'local', 'remote_write');

select
  pg_catalog.pg_is_in_recovery(),
  l.lanname = 'plproxy',
  case
    when l.lanname = 'plproxy' then
      pg_catalog.concat(
        pg_catalog.set_config('statement_timeout', '0', false),
        pg_catalog.set_config('client_connection_check_interval', '1000', false)
      )
  end
from (values (pg_catalog.to_regprocedure('coupond.claim_coupon(text, text)'))) as f (claim_coupon)
left join pg_catalog.pg_proc as p
  on p.oid = f.claim_coupon
left join pg_catalog.pg_language as l
  on l.oid = p.prolang`

// prepare executes prepareSQL. It uses the simple protocol, which works with every pooler.
func (sc *serverConn) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, prepareSQL).ReadAll()
	if err != nil {
		return err
	}
	if n := len(results); n == 0 || len(results[n-1].Rows) != 1 {
		return fmt.Errorf("%w: the session could not be prepared", errInconsistent)
	}
	row := results[len(results)-1].Rows[0]
	switch standby, plproxy := string(row[0]) == "t", row[1]; {
	case standby:
		return errStandby
	case plproxy == nil:
		sc.kind = kindUnknown
	case string(plproxy) == "t":
		sc.kind = kindProxy
	default:
		sc.kind = kindServer
	}
	return nil
}

// mayBeProxy reports whether an error comes from a proxy, as far as is known. Where our functions
// are not installed, they cannot be missing on a shard either.
func (sc *serverConn) mayBeProxy(err error) bool {
	return sc.kind == kindProxy || sc.kind == kindUnknown && !isNotInstalled(sqlState(err))
}
