package pgstore

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ParseURL parses a connection string: a URL or keyword=value pairs. Unlike pgx it reports all
// wrong values, and parameters that neither pgx nor PostgreSQL knows: pgx sends those to the
// server, which then refuses every connection.
//
// The error has one line for each problem. A line names the parameter and its value, but never
// shows a password: not the value of an unknown parameter, and nothing of a string in which it is
// unclear where the password ends.
//
// White space around a URL is ignored, because files and secrets often end with a newline.
func ParseURL(text string) (*pgxpool.Config, error) {
	text = trimURL(text)
	config, err := pgxpool.ParseConfig(text)
	if err != nil && strings.Contains(err.Error(), "failed to parse as") {
		return nil, malformed(err)
	}
	base, params, wellFormed := splitParams(text)
	if !wellFormed {
		return nil, malformed(err)
	}
	problems := checkParams(params)
	switch {
	case err != nil:
		problems = append(problems, explainParseError(err, base, len(problems) > 0)...)
	default:
		// The others come from a service file or from the PG… variables of the environment.
		for _, name := range slices.Sorted(maps.Keys(config.ConnConfig.RuntimeParams)) {
			if !slices.ContainsFunc(params, func(p connParam) bool { return p.name == name }) {
				problems = append(problems, checkParams([]connParam{{name, config.ConnConfig.RuntimeParams[name]}})...)
			}
		}
		problems = append(problems, checkCaches(config.ConnConfig)...)
	}
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
		return text + " password=" + quoteValue(password), nil
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

// connParam is a parameter of a connection string.
type connParam struct{ name, value string }

func (p connParam) String() string { return fmt.Sprintf("%s=%q", p.name, p.value) }

// allowedValues has parameters of pgx by the values that they may have.
var allowedValues = byName(map[string]string{
	"a duration such as 30s or 5m": "pool_health_check_period pool_max_conn_idle_time pool_max_conn_lifetime" +
		" pool_max_conn_lifetime_jitter pool_ping_timeout",
	"a number from 1 to 65535":  "port",
	"a whole number":            "description_cache_capacity pool_min_conns pool_min_idle_conns statement_cache_capacity",
	"a whole number of seconds": "connect_timeout",
	"one of 3.0, 3.2, latest":   "max_protocol_version min_protocol_version",
	"one of any, read-write, primary, because claims are written":                  "target_session_attrs",
	"one of cache_statement, cache_describe, describe_exec, exec, simple_protocol": "default_query_exec_mode",
	"one of disable, allow, prefer, require, verify-ca, verify-full":               "sslmode",
	"one of disable, allow, require":                                               "sslcertmode",
	"one of disable, prefer, require":                                              "channel_binding",
})

// foreignParams are parameters of libpq and other clients that neither pgx nor PostgreSQL
// understands, by what to do instead.
var foreignParams = byName(map[string]string{
	"use application_name": "ApplicationName fallback_application_name",
	"use default_query_exec_mode=exec behind a pooler that does not keep prepared statements": "binary_parameters pgbouncer" +
		" prepareThreshold prepare_threshold prepared_statements",
	"use DB_MAX_CONNS": "connection_limit pool_max_conns pool_size",
	"use host":         "hostaddr",
	"use sslmode":      "ssl",
	"the schema is always coupond; remove it":                  "currentSchema schema",
	"GSSAPI encryption is not supported; remove it":            "gssdelegation gssencmode gsslib",
	"TCP keep-alive is always on; remove it":                   "keepalives keepalives_count keepalives_idle keepalives_interval tcpKeepAlive",
	"hosts are tried in their order; remove it":                "load_balance_hosts",
	"a replication connection cannot claim coupons; remove it": "replication",
	"not supported; remove it": "requirepeer ssl_max_protocol_version ssl_min_protocol_version sslcompression" +
		" sslcrl sslcrldir sslkeylogfile",
})

// settingsText contains the settings of PostgreSQL 15 to 18 that a session can change, in lower
// case.
//
//go:embed settings.txt
var settingsText string

// pgxParams are the parameters of pgx that may have any value, or values that pgx describes well.
const pgxParams = "database dbname host krbspn krbsrvname passfile password require_auth service servicefile sslcert" +
	" sslkey sslnegotiation sslpassword sslrootcert sslsni user"

// byName inverts a map from meanings to lists of names.
func byName(lists map[string]string) map[string]string {
	inverted := map[string]string{}
	for meaning, names := range lists {
		for name := range strings.FieldsSeq(names) {
			inverted[name] = meaning
		}
	}
	return inverted
}

// isKnown reports whether pgx or PostgreSQL understands the parameter. Settings of extensions have
// a dot in their names.
func (p connParam) isKnown() bool {
	return allowedValues[p.name] != "" || slices.Contains(strings.Fields(pgxParams), p.name) ||
		slices.Contains(strings.Fields(settingsText), strings.ToLower(p.name)) || strings.Contains(p.name, ".")
}

// checkParams returns what is wrong with the parameters, each of them alone.
func checkParams(params []connParam) []string {
	var problems []string
	afterPassword := false
	for i, p := range params {
		advice, allowed := foreignParams[p.name], allowedValues[p.name]
		switch {
		case slices.ContainsFunc(params[i+1:], func(later connParam) bool { return later.name == p.name }): // which counts
		case advice != "":
			problems = append(problems, fmt.Sprintf("%s: %s", p, advice))
		case allowed != "" && !p.isAllowed():
			problems = append(problems, fmt.Sprintf("%s: must be %s", p, allowed))
		case p.isKnown():
		case afterPassword: // it may be the rest of the password
			problems = append(problems, "unknown parameter after the password: remove it,"+
				" or, if it belongs to the password, quote that (password='…') or percent-encode it")
		default:
			problems = append(problems, p.name+": unknown parameter; remove it,"+
				" or, if your server knows it, use options='-c "+p.name+"=…'")
		}
		afterPassword = afterPassword || p.name == "password" || p.name == "sslpassword"
	}
	return problems
}

// isAllowed reports whether pgx accepts the value of a parameter, and the service as well. The host
// is not a socket, for which pgx ignores the parameters of TLS.
func (p connParam) isAllowed() bool {
	switch p.value {
	case "read-only", "standby", "prefer-standby":
		return p.name != "target_session_attrs"
	}
	if strings.Contains(p.value, ",") { // the number of ports depends on that of the hosts
		return true
	}
	_, err := pgxpool.ParseConfig("host=localhost " + p.name + "=" + quoteValue(p.value))
	return err == nil
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

// explainParseError returns why pgx cannot parse a connection string, besides wrong values of
// single parameters. base is the string without parameters.
func explainParseError(err error, base string, hasWrongValues bool) []string {
	if _, environmentErr := pgxpool.ParseConfig("host=localhost"); environmentErr != nil {
		return []string{fmt.Sprintf("the environment variables %s: %s", strings.Join(libpqVariables(), ", "), parseReason(environmentErr))}
	}
	if base != "" {
		if _, baseErr := pgxpool.ParseConfig(base); baseErr != nil {
			return []string{parseReason(baseErr)}
		}
	}
	if hasWrongValues {
		return nil
	}
	return []string{parseReason(err)}
}

// libpqVariables returns the names of the environment variables that pgx and libpq read.
func libpqVariables() []string {
	var names []string
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// parseReason returns the part of pgx's error that does not quote the connection string. The error
// is: cannot parse `…`: problem (cause).
func parseReason(err error) string {
	text := err.Error()
	text = text[strings.LastIndex(text, "`: ")+len("`: "):]
	if text == "invalid port" {
		return "the port is not a number from 1 to 65535, or the password has a : / ? or @ that is not percent-encoded"
	}
	return text
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

var (
	paramName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
	keyword   = regexp.MustCompile(`([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)`)
	escape    = regexp.MustCompile(`\\(.)`)
)

// splitParams splits a connection string that pgx can split into its parameters and, for a URL, the
// part before them. It is not well-formed if it may have been meant in another way: in
// postgres://user:12/34@host/db libpq and pgx see port 12 and a database named 34@host/db.
func splitParams(text string) (base string, params []connParam, wellFormed bool) {
	if _, rest, isURL := cutScheme(text); isURL {
		beforeQuery, query, _ := strings.Cut(afterUser(rest), "?")
		if strings.ContainsAny(beforeQuery, "@\n\r\t") {
			return "", nil, false
		}
		base = strings.TrimSuffix(strings.TrimSuffix(text, query), "?")
		for item := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' }) {
			name, value, _ := strings.Cut(item, "=")
			value, _ = url.PathUnescape(strings.TrimSpace(value))
			if name == "ssl" && value == "true" { // as in JDBC
				name, value = "sslmode", "require"
			}
			params = append(params, connParam{strings.TrimSpace(name), value})
		}
	} else {
		for _, match := range keyword.FindAllStringSubmatch(text, -1) {
			value := strings.TrimSuffix(strings.TrimPrefix(match[2], "'"), "'")
			params = append(params, connParam{match[1], escape.ReplaceAllString(value, "$1")})
		}
	}
	return base, params, !slices.ContainsFunc(params, func(p connParam) bool { return !paramName.MatchString(p.name) })
}

func quoteValue(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

func trimURL(text string) string {
	if trimmed := strings.TrimSpace(text); trimmed != text {
		if _, _, isURL := cutScheme(trimmed); isURL {
			return trimmed
		}
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
