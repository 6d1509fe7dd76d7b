package pgstore

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
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
	base, params, err := splitConnString(text)
	if err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(text)
	if err != nil {
		return nil, joinLines(append(checkParams(params), explainParseError(err, base, params)...))
	}
	if problems := append(checkParams(withServiceFile(params, config)), checkCaches(config)...); len(problems) > 0 {
		return nil, joinLines(problems)
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

func (p connParam) isSecret() bool { return p.name == "password" || p.name == "sslpassword" }

// pgxParams are the parameters that pgx understands, each with the allowed values, or "" if all
// values are allowed or pgx describes them well.
var pgxParams = map[string]string{
	"channel_binding":               "one of disable, prefer, require",
	"connect_timeout":               "a whole number of seconds",
	"database":                      "",
	"default_query_exec_mode":       "one of cache_statement, cache_describe, describe_exec, exec, simple_protocol",
	"description_cache_capacity":    "a whole number",
	"host":                          "",
	"krbspn":                        "",
	"krbsrvname":                    "",
	"max_protocol_version":          "one of 3.0, 3.2, latest",
	"min_protocol_version":          "one of 3.0, 3.2, latest",
	"passfile":                      "",
	"password":                      "",
	"pool_health_check_period":      "a duration such as 30s or 5m",
	"pool_max_conn_idle_time":       "a duration such as 30s or 5m",
	"pool_max_conn_lifetime":        "a duration such as 30s or 5m",
	"pool_max_conn_lifetime_jitter": "a duration such as 30s or 5m",
	"pool_min_conns":                "a whole number",
	"pool_min_idle_conns":           "a whole number",
	"pool_ping_timeout":             "a duration such as 30s or 5m",
	"port":                          "a number from 1 to 65535",
	"require_auth":                  "",
	"service":                       "",
	"servicefile":                   "",
	"sslcert":                       "",
	"sslcertmode":                   "one of disable, allow, require",
	"sslkey":                        "",
	"sslmode":                       "one of disable, allow, prefer, require, verify-ca, verify-full",
	"sslnegotiation":                "",
	"sslpassword":                   "",
	"sslrootcert":                   "",
	"sslsni":                        "",
	"statement_cache_capacity":      "a whole number",
	"target_session_attrs":          "one of any, read-write, primary",
	"user":                          "",
}

// joinedParams are groups of parameters that pgx checks together.
var joinedParams = [][]string{
	{"host", "port"},
	{"sslcert", "sslkey", "sslpassword"},
	{"service", "servicefile"},
	{"min_protocol_version", "max_protocol_version"},
	{"default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity"},
}

// foreignParams are parameters of libpq and other clients that neither pgx nor PostgreSQL
// understands, with what to do instead.
var foreignParams = map[string]string{
	"ApplicationName":           "use application_name",
	"binary_parameters":         useExecMode,
	"connection_limit":          useMaxConns,
	"currentSchema":             useNoSchema,
	"fallback_application_name": "use application_name",
	"gssdelegation":             "GSSAPI encryption is not supported; remove it",
	"gssencmode":                "GSSAPI encryption is not supported; remove it",
	"gsslib":                    "GSSAPI encryption is not supported; remove it",
	"hostaddr":                  "use host",
	"keepalives":                useNoKeepAlive,
	"keepalives_count":          useNoKeepAlive,
	"keepalives_idle":           useNoKeepAlive,
	"keepalives_interval":       useNoKeepAlive,
	"load_balance_hosts":        "hosts are tried in their order; remove it",
	"pgbouncer":                 useExecMode,
	"pool_max_conns":            useMaxConns,
	"pool_size":                 useMaxConns,
	"prepareThreshold":          useExecMode,
	"prepare_threshold":         useExecMode,
	"prepared_statements":       useExecMode,
	"replication":               "a replication connection cannot claim coupons; remove it",
	"requirepeer":               "not supported; remove it",
	"schema":                    useNoSchema,
	"ssl":                       "use sslmode",
	"ssl_max_protocol_version":  "not supported; remove it",
	"ssl_min_protocol_version":  "not supported; remove it",
	"sslcompression":            "not supported; remove it",
	"sslcrl":                    "not supported; remove it",
	"sslcrldir":                 "not supported; remove it",
	"sslkeylogfile":             "not supported; remove it",
	"tcpKeepAlive":              useNoKeepAlive,
}

const (
	useExecMode    = "use default_query_exec_mode=exec behind a pooler that does not keep prepared statements"
	useMaxConns    = "use DB_MAX_CONNS"
	useNoKeepAlive = "TCP keep-alive is always on; remove it"
	useNoSchema    = "the schema is always coupond; remove it"
)

// settingsText contains the settings of PostgreSQL 15 to 18 that a session can change, in lower
// case.
//
//go:embed settings.txt
var settingsText string

var serverSettings = func() map[string]bool {
	set := map[string]bool{}
	for name := range strings.FieldsSeq(settingsText) {
		set[name] = true
	}
	return set
}()

// isKnown reports whether pgx or PostgreSQL understands the parameter. Settings of extensions have
// a dot in their names.
func (p connParam) isKnown() bool {
	_, ofPgx := pgxParams[p.name]
	return ofPgx || strings.Contains(p.name, ".") || serverSettings[strings.ToLower(p.name)]
}

// withServiceFile adds the run-time parameters that come from a service file or from the PG…
// variables of the environment.
func withServiceFile(params []connParam, config *pgxpool.Config) []connParam {
	for _, name := range slices.Sorted(maps.Keys(config.ConnConfig.RuntimeParams)) {
		if !slices.ContainsFunc(params, func(p connParam) bool { return p.name == name }) {
			params = append(params, connParam{name, config.ConnConfig.RuntimeParams[name]})
		}
	}
	return params
}

// checkParams returns what is wrong with the parameters' names, and with values that pgx accepts
// but the service does not.
func checkParams(params []connParam) []string {
	var problems []string
	afterPassword := false
	for _, p := range params {
		advice, isForeign := foreignParams[p.name]
		switch {
		case isForeign:
			problems = append(problems, fmt.Sprintf("%s: %s", p, advice))
		case p.name == "target_session_attrs" && slices.Contains([]string{"read-only", "standby", "prefer-standby"}, p.value):
			problems = append(problems, p.mustBe(pgxParams[p.name]+", because claims are written"))
		case p.isKnown():
		case afterPassword: // it may be the rest of the password
			problems = append(problems, "unknown parameter after the password: remove it,"+
				" or, if it belongs to the password, quote that (password='…') or percent-encode it")
		default:
			problems = append(problems, p.name+": unknown parameter; remove it,"+
				" or, if your server knows it, use options='-c "+p.name+"=…'")
		}
		afterPassword = afterPassword || p.isSecret()
	}
	return problems
}

func (p connParam) mustBe(allowed string) string { return fmt.Sprintf("%s: must be %s", p, allowed) }

// checkCaches returns a problem if pgx has no room for the statements or descriptions that its mode
// needs: then each call would fail before it is sent.
func checkCaches(config *pgxpool.Config) []string {
	const advice = `%s="%d": must be 1 or more; to prepare no statements, use default_query_exec_mode=exec`
	conn := config.ConnConfig
	if conn.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement && conn.StatementCacheCapacity < 1 {
		return []string{fmt.Sprintf(advice, "statement_cache_capacity", conn.StatementCacheCapacity)}
	}
	if conn.DefaultQueryExecMode == pgx.QueryExecModeCacheDescribe && conn.DescriptionCacheCapacity < 1 {
		return []string{fmt.Sprintf(advice, "description_cache_capacity", conn.DescriptionCacheCapacity)}
	}
	return nil
}

// explainParseError finds all wrong values of a connection string for which pgx has returned err.
// It lets pgx parse each of its parts alone.
func explainParseError(err error, base string, params []connParam) []string {
	if _, environmentErr := parseParams(nil); environmentErr != nil {
		inEnvironment := fmt.Sprintf("the environment variables %s: %s", strings.Join(libpqVariables(), ", "), parseReason(environmentErr))
		if parseReason(environmentErr) == parseReason(err) {
			return []string{inEnvironment}
		}
		return []string{inEnvironment, parseReason(err)}
	}
	var problems []string
	for _, group := range groupParams(params) {
		problems = append(problems, checkGroup(group)...)
	}
	if base != "" {
		if _, err := pgxpool.ParseConfig(base); err != nil {
			problems = append(problems, parseReason(err))
		}
	}
	if len(problems) == 0 {
		problems = append(problems, parseReason(err))
	}
	return problems
}

func groupParams(params []connParam) [][]connParam {
	var groups [][]connParam
	rest := params
	for _, names := range joinedParams {
		var group, others []connParam
		for _, p := range rest {
			if slices.Contains(names, p.name) {
				group = append(group, p)
			} else {
				others = append(others, p)
			}
		}
		groups, rest = append(groups, group), others
	}
	for _, p := range rest {
		if p.isKnown() {
			groups = append(groups, []connParam{p})
		}
	}
	return groups
}

func checkGroup(group []connParam) []string {
	config, err := parseParams(group)
	if err == nil {
		return checkCaches(config)
	}
	var problems []string
	for _, p := range group {
		// The number of ports depends on that of the hosts.
		if allowed := pgxParams[p.name]; allowed != "" && !strings.Contains(p.value, ",") {
			if _, err := parseParams([]connParam{p}); err != nil {
				problems = append(problems, p.mustBe(allowed))
			}
		}
	}
	if len(problems) > 0 {
		return problems
	}
	names := make([]string, 0, len(group))
	for _, p := range group {
		if cause, ok := errors.AsType[*fs.PathError](err); ok && cause.Path == p.value {
			return []string{fmt.Sprintf("%s: %v", p, cause.Err)}
		}
		names = append(names, p.name)
	}
	return []string{strings.Join(names, ", ") + ": " + parseReason(err)}
}

// parseParams lets pgx parse parameters alone. The host is not a socket, for which pgx ignores the
// parameters of TLS.
func parseParams(params []connParam) (*pgxpool.Config, error) {
	text := "host=localhost"
	for _, p := range params {
		text += " " + p.name + "=" + quoteValue(p.value)
	}
	return pgxpool.ParseConfig(text)
}

// parseReason returns the part of pgx's error that does not quote the connection string. The error
// is: cannot parse `…`: problem (cause).
func parseReason(err error) string {
	text := err.Error()
	text = text[strings.LastIndex(text, "`: ")+len("`: "):]
	switch {
	case strings.HasPrefix(text, "failed to parse as"): // it quotes a part
		return malformed("not a valid connection string").Error()
	case text == "invalid port":
		return "the port is not a number from 1 to 65535, or the password has a : / ? or @ that is not percent-encoded"
	}
	return text
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

func joinLines(problems []string) error { return errors.New(strings.Join(problems, "\n")) }

// malformed returns the error for a string of which nothing may be shown.
func malformed(problem string) error {
	return errors.New(problem + "; use postgres://user@host:5432/database (special characters percent-encoded)" +
		" or 'host=… user=… dbname=…' (not shown, because it may hold a password)")
}
