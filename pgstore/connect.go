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
	"github.com/jackc/pgx/v5"
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
	// Only the text of an error says which parameter, or which role, it is about. The names in it are
	// not translated.
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

// raiseSynchronousCommitSQL makes commits of the session wait for the disk, and for the synchronous
// standbys if there are any. It is not a parameter of the connection, because that would also lower
// remote_apply.
const raiseSynchronousCommitSQL = `
select pg_catalog.set_config('synchronous_commit', 'on', false)
where pg_catalog.current_setting('synchronous_commit') in ('off', 'local', 'remote_write')`

// raiseSynchronousCommit prepares a session that was just started. It uses the simple protocol,
// which works with every pooler.
func raiseSynchronousCommit(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, conn.Config().ConnectTimeout)
	defer cancel()
	return conn.PgConn().Exec(ctx, raiseSynchronousCommitSQL).Close()
}
