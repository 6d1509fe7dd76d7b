package pgstore

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ParseURL parses a connection string: a URL or keyword=value pairs. Unlike pgx it rejects
// parameters that neither pgx nor PostgreSQL knows: pgx sends those to the server, which then
// refuses every connection.
//
// The error has one line for each problem. If pgx rejects the string, that is its first one. No
// line shows a password: nothing of a string in which it is unclear where the password ends.
//
// White space around a URL is ignored, because files and secrets often end with a newline.
func ParseURL(text string) (*pgxpool.Config, error) {
	text = trimURL(text)
	config, err := pgxpool.ParseConfig(text)
	if err != nil && strings.Contains(err.Error(), "failed to parse as") || isAmbiguous(text) {
		return nil, malformed(err)
	}
	if err != nil {
		return nil, parseProblem(err)
	}
	var problems []string
	params := config.ConnConfig.RuntimeParams // what pgx sends to the server
	for _, name := range slices.Sorted(maps.Keys(params)) {
		switch advice := adviceOn(name); {
		case advice != "":
			problems = append(problems, fmt.Sprintf("%s=%q: %s", name, params[name], advice))
		case isServerSetting(name):
		case !paramName.MatchString(name):
			return nil, malformed(nil)
		case strings.Contains(text, "password"): // the name may be the rest of a password
			problems = append(problems, "unknown parameter beside the password: remove it,"+
				" or, if it belongs to the password, quote that (password='…') or percent-encode it")
		default:
			problems = append(problems, name+": unknown parameter; remove it,"+
				" or, if your server knows it, use options='-c "+name+"=…'")
		}
	}
	if poolMaxConns.MatchString(text) {
		problems = append(problems, "pool_max_conns: use DB_MAX_CONNS")
	}
	if selectsStandby(config.ConnConfig) {
		problems = append(problems, "target_session_attrs: must be any, read-write or primary, because claims are written")
	}
	problems = append(problems, checkCaches(config.ConnConfig)...)
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "\n"))
	}
	return config, nil
}

// WithPassword returns the connection string with password in place of the one it may have. It
// edits the text, because net/url does not support lists of hosts (host1:5432,host2:5432).
func WithPassword(text, password string) (string, error) {
	text = trimURL(text)
	scheme, rest, isURL := cutScheme(text)
	if !isURL {
		// Of a repeated keyword the last value counts.
		escaped := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password)
		return text + " password='" + escaped + "'", nil
	}
	config, err := ParseURL(text)
	if err != nil {
		return "", err
	}
	login := url.UserPassword(config.ConnConfig.User, password).String()
	with := scheme + login + "@" + afterUser(rest)
	if config, err = pgxpool.ParseConfig(with); err != nil || config.ConnConfig.Password != password {
		return "", errors.New("it has a password among its parameters already")
	}
	return with, nil
}

// adviceOn returns what to do instead of a parameter of another client; "": it is not known.
func adviceOn(name string) string {
	switch name {
	case "ApplicationName", "fallback_application_name":
		return "use application_name"
	case "binary_parameters", "pgbouncer", "prepareThreshold", "prepare_threshold", "prepared_statements":
		return "use default_query_exec_mode=exec behind a pooler that does not keep prepared statements"
	case "connection_limit", "pool_size":
		return "use DB_MAX_CONNS"
	case "currentSchema", "schema":
		return "the schema is always coupond; remove it"
	case "hostaddr":
		return "use host"
	case "ssl":
		return "use sslmode"
	case "gssdelegation", "gssencmode", "gsslib", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
		"load_balance_hosts", "replication", "requirepeer", "requiressl", "sslcompression", "sslcrl", "sslcrldir", "tcp_user_timeout", "tcpKeepAlive":
		return "not supported; remove it"
	}
	return ""
}

// settingsText contains the settings of PostgreSQL 15 to 18 that a session can change, in lower
// case.
//
//go:embed settings.txt
var settingsText string

// isServerSetting reports whether PostgreSQL knows a parameter. Settings of extensions have a dot
// in their names.
func isServerSetting(name string) bool {
	return slices.Contains(strings.Fields(settingsText), strings.ToLower(name)) || extensionSetting.MatchString(name)
}

var (
	paramName        = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	poolMaxConns     = regexp.MustCompile(`(^|[?&\s])pool_max_conns\s*=`)
	extensionSetting = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z0-9_.]+$`)
)

// selectsStandby reports whether target_session_attrs may select a server that refuses claims. Of
// the parameter, pgx keeps only a function.
func selectsStandby(conn *pgx.ConnConfig) bool {
	pointer := func(f pgconn.ValidateConnectFunc) uintptr { return reflect.ValueOf(f).Pointer() }
	return conn.ValidateConnect != nil && slices.Contains([]uintptr{
		pointer(pgconn.ValidateConnectTargetSessionAttrsReadOnly),
		pointer(pgconn.ValidateConnectTargetSessionAttrsStandby),
		pointer(pgconn.ValidateConnectTargetSessionAttrsPreferStandby),
	}, pointer(conn.ValidateConnect))
}

// checkCaches returns a problem if pgx has no room for the statements or descriptions that its mode
// needs: then each call would fail before it is sent.
func checkCaches(conn *pgx.ConnConfig) []string {
	const advice = `%s="%d": must be 1 or more; to prepare no statements, use default_query_exec_mode=exec`
	switch mode := conn.DefaultQueryExecMode; {
	case mode == pgx.QueryExecModeCacheStatement && conn.StatementCacheCapacity < 1:
		return []string{fmt.Sprintf(advice, "statement_cache_capacity", conn.StatementCacheCapacity)}
	case mode == pgx.QueryExecModeCacheDescribe && conn.DescriptionCacheCapacity < 1:
		return []string{fmt.Sprintf(advice, "description_cache_capacity", conn.DescriptionCacheCapacity)}
	}
	return nil
}

// parseProblem returns why pgx cannot parse a connection string, without the string. The error of
// pgx quotes it: cannot parse `…`: problem (cause).
func parseProblem(err error) error {
	source := ""
	if _, environmentErr := pgxpool.ParseConfig("host=localhost"); environmentErr != nil {
		source, err = "an environment variable of libpq (PG…): ", environmentErr
	}
	text := err.Error()
	text = text[strings.LastIndex(text, "`: ")+len("`: "):]
	if text == "invalid port" {
		text = "the port is not a number from 1 to 65535, or the password has a : / ? or @ that is not percent-encoded"
	}
	return errors.New(source + text)
}

// malformed returns the error for a string of which nothing may be shown.
func malformed(err error) error {
	problem := "not a connection string"
	for _, known := range []struct{ cause, problem string }{
		{"percent-encoded token", "a % is not followed by two hexadecimal digits (percent-encode it: %25)"},
		{"unexpected spaces", "it has a space (percent-encode it: %20)"},
		{"extra key/value", "the value of a parameter has an = (percent-encode it: %3D)"},
		{"unterminated quoted", "a quotation mark is missing"},
		{"missing key/value", "a parameter has no value (percent-encode / ? and @ in the password)"},
	} {
		if strings.Contains(fmt.Sprint(err), known.cause) {
			problem = known.problem
		}
	}
	return errors.New(problem + "; use postgres://user@host:5432/database (special characters percent-encoded)" +
		" or 'host=… user=… dbname=…' (not shown, because it may hold a password)")
}

// isAmbiguous reports whether a URL may have been meant in another way than pgx parses it. In
// postgres://user:12/34@host/db libpq and pgx see port 12 and a database named 34@host/db.
func isAmbiguous(text string) bool {
	_, rest, isURL := cutScheme(text)
	beforeQuery, _, _ := strings.Cut(afterUser(rest), "?")
	return isURL && strings.ContainsAny(beforeQuery, "@\n\r\t")
}

func trimURL(text string) string {
	trimmed := strings.TrimSpace(text)
	if _, _, isURL := cutScheme(trimmed); isURL {
		return trimmed
	}
	return text
}

// afterUser returns the part of a URL, given without its scheme, that follows the user and the
// password. Like libpq, it assumes that these end at the first @ before any /.
func afterUser(rest string) string {
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		return rest[i+1:]
	}
	return rest
}

func cutScheme(text string) (scheme, rest string, isURL bool) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(text, scheme); ok {
			return scheme, rest, true
		}
	}
	return "", text, false
}
