package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

// The configuration of a command is a struct of the groups below, which load reads from the
// environment. The struct tags are the only description of a variable. Parsing, validation, error
// messages and help follow from them:
//
//	env, envDefault  name and default value (see caarlos0/env)
//	help             meaning
//	fallback         description of a default that is not a constant
//	min, max         inclusive bounds of a number or a duration
//	oneof            allowed words, separated by spaces
//	form             key in forms, for rules that the tags above cannot express
//	secret           the value is never shown

// databaseConfig names the database.
type databaseConfig struct {
	URL          string `env:"DATABASE_URL"           fallback:"required"  form:"database"                                                 help:"PostgreSQL connection string" secret:"true"`
	PasswordFile string `env:"DATABASE_PASSWORD_FILE" form:"password file" help:"file with the password, which replaces one in DATABASE_URL"`
}

// listenConfig names the address of the service.
type listenConfig struct {
	Addr string `env:"LISTEN_ADDR" envDefault:":8080" form:"address" help:"address to listen on"`
}

// serviceConfig sets the limits of the service.
type serviceConfig struct {
	MaxConns int32 `env:"DB_MAX_CONNS" envDefault:"16" help:"connections to PostgreSQL, at most" max:"1000" min:"1"`
	// ADR 0008 has the measurements behind the default.
	ClaimConcurrency int           `env:"CLAIM_CONCURRENCY" envDefault:"1"    help:"batches of claims in flight at once (behind a proxy: for each shard); at most DB_MAX_CONNS" max:"1000"    min:"1"`
	ClaimQueue       int           `env:"CLAIM_QUEUE"       envDefault:"4096" help:"pending claims of a batcher, at most; the next one is answered 503"                         max:"1000000" min:"1"`
	ClaimTimeout     time.Duration `env:"CLAIM_TIMEOUT"     envDefault:"5s"   help:"time limit for answering a claim"                                                           max:"10m"     min:"10ms"`
	ShutdownTimeout  time.Duration `env:"SHUTDOWN_TIMEOUT"  envDefault:"30s"  help:"time limit for answering open requests during a shutdown"                                   max:"1h"      min:"10ms"`
}

// conflict returns a problem with values that are valid on their own, or "". A value that could not
// be parsed is zero here.
func (c *serviceConfig) conflict() string {
	if c.MaxConns >= 1 && c.ClaimConcurrency > int(c.MaxConns) {
		return fmt.Sprintf("CLAIM_CONCURRENCY=\"%d\": each batch needs a connection; must be at most DB_MAX_CONNS, which is %d", c.ClaimConcurrency, c.MaxConns)
	}
	return ""
}

// logConfig configures the log.
type logConfig struct {
	Level  string `env:"LOG_LEVEL"  envDefault:"info"                           help:"lowest level that is logged" oneof:"debug info warn error"`
	Format string `env:"LOG_FORMAT" fallback:"console on a terminal, else json" help:"format of log lines"         oneof:"json console"`
}

// forms are the rules that bounds and words cannot express: a description of the allowed values,
// and a check, which is not called for a value that is not set.
var forms = map[string]struct {
	allowed string
	check   func(value string) error
}{
	"address": {
		"host:port or :port, with a port from 0 (any free one) to 65535", checkAddress,
	},
	"database": {
		"postgres://user@host:5432/database (special characters percent-encoded) or 'host=… user=… dbname=…'", checkDatabaseURL,
	},
	"password file": {
		"a readable file with one line", func(path string) error { _, err := readPassword(path); return err },
	},
}

// environment maps the names of environment variables to their values.
type environment map[string]string

// variable is an environment variable: a field of a configuration, with its tags and its value.
type variable struct {
	reflect.StructField

	value reflect.Value
}

// variables returns the variables of the configuration that config points to, in order.
func variables(config any) []variable {
	var list []variable
	for _, group := range groups(config) {
		for i := range group.NumField() {
			list = append(list, variable{group.Type().Field(i), group.Field(i)})
		}
	}
	return list
}

// groups returns the structs that make up the configuration that config points to.
func groups(config any) []reflect.Value {
	all := reflect.ValueOf(config).Elem()
	list := make([]reflect.Value, all.NumField())
	for i := range list {
		list[i] = all.Field(i)
	}
	return list
}

func (v variable) name() string { return v.Tag.Get("env") }

func (v variable) secret() bool { return v.Tag.Get("secret") != "" }

// allowed describes the allowed values.
func (v variable) allowed() string {
	low, high := v.Tag.Get("min"), v.Tag.Get("max")
	switch {
	case v.Tag.Get("oneof") != "":
		return "one of " + strings.Join(strings.Fields(v.Tag.Get("oneof")), ", ")
	case v.Tag.Get("form") != "":
		return forms[v.Tag.Get("form")].allowed
	case v.isDuration():
		return fmt.Sprintf("a duration such as 500ms, 5s or 1m, from %s to %s", low, high)
	default:
		return fmt.Sprintf("a whole number from %s to %s", low, high)
	}
}

func (v variable) isDuration() bool { return v.Type == reflect.TypeFor[time.Duration]() }

// check checks a value that could be parsed. It returns errNotAllowed if the description of the
// allowed values explains the problem.
func (v variable) check() error {
	if v.value.IsZero() && v.Tag.Get("envDefault") == "" {
		return nil // not set
	}
	switch {
	case v.Tag.Get("oneof") != "":
		if !slices.Contains(strings.Fields(v.Tag.Get("oneof")), v.value.String()) {
			return errNotAllowed
		}
	case v.Tag.Get("form") != "":
		return forms[v.Tag.Get("form")].check(v.value.String())
	default:
		if n := v.value.Int(); n < v.bound("min") || n > v.bound("max") {
			return errNotAllowed
		}
	}
	return nil
}

var errNotAllowed = errors.New("value not allowed")

// bound returns the value of the tag min or max. A tag that cannot be parsed is a programming
// error, which TestConfig_tags finds.
func (v variable) bound(tag string) int64 {
	text := v.Tag.Get(tag)
	if v.isDuration() {
		d, err := time.ParseDuration(text)
		if err != nil {
			panic(err)
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// loggable returns the value for the log.
func (v variable) loggable() string {
	if v.secret() {
		return "(hidden)"
	}
	return fmt.Sprint(v.value.Interface())
}

// load reads the configuration that config points to from vars. The error is a usageError. It
// reports all invalid values, not only the first, and never shows a password.
func load(vars environment, config any) error {
	failed := map[string]bool{} // Go names of the fields that could not be parsed
	if err := env.ParseWithOptions(config, env.Options{Environment: vars}); err != nil {
		all, ok := errors.AsType[env.AggregateError](err)
		if !ok {
			return err
		}
		for _, one := range all.Errors {
			parseErr, ok := errors.AsType[env.ParseError](one)
			if !ok {
				return err // a mistake in the struct tags
			}
			failed[parseErr.Name] = true
		}
	}

	var problems []string
	for _, v := range variables(config) {
		err := errNotAllowed
		if !failed[v.Name] {
			err = v.check()
		}
		if err == nil {
			continue
		}
		problem := fmt.Sprintf("%s=%q", v.name(), shorten(vars[v.name()]))
		if v.secret() {
			problem = v.name() + " (not shown, because it may hold a password)"
		}
		if !errors.Is(err, errNotAllowed) {
			problem += ": " + err.Error() + ";"
		} else {
			problem += ":"
		}
		problems = append(problems, problem+" must be "+v.allowed())
	}
	for _, group := range groups(config) {
		if c, ok := reflect.TypeAssert[interface{ conflict() string }](group.Addr()); ok {
			if conflict := c.conflict(); conflict != "" {
				problems = append(problems, conflict)
			}
		}
	}

	switch len(problems) {
	case 0:
		return nil
	case 1:
		return usageError{errors.New(problems[0])}
	default:
		return usageError{fmt.Errorf("%d invalid settings:\n  %s", len(problems), strings.Join(problems, "\n  "))}
	}
}

// shorten truncates a long value, such as a whole file that was set by accident.
func shorten(value string) string {
	const limit = 100
	if len(value) <= limit {
		return value
	}
	return value[:limit] + "…"
}

// describe returns the help for the variables of the configuration that config points to.
func describe(config any) string {
	var b strings.Builder
	for _, v := range variables(config) {
		b.WriteString("  " + v.name())
		if fallback := v.Tag.Get("envDefault"); fallback != "" {
			b.WriteString("=" + fallback)
		} else if fallback := v.Tag.Get("fallback"); fallback != "" {
			b.WriteString("  (" + fallback + ")")
		}
		for _, text := range []string{v.Tag.Get("help"), v.allowed()} {
			b.WriteString("\n        " + strings.Join(fold(text, 80-10), "\n          "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// fold wraps a text between words into lines of at most width characters.
func fold(text string, width int) []string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		if last >= 0 && utf8.RuneCountInString(lines[last]+" "+word) <= width {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

// effective returns the configuration for the log: every variable with its effective value, secrets
// hidden.
func effective(config any) *zerolog.Event {
	dict := zerolog.Dict()
	for _, v := range variables(config) {
		dict.Str(v.name(), v.loggable())
	}
	return dict
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errNotAllowed
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errNotAllowed
	}
	return nil
}

// checkDatabaseURL checks that pgx can parse the connection string. Its error never contains a part
// of the string that may belong to the password. pgx hides the password where it recognises it, but
// it cannot do so in a string that it cannot parse. Other strings parse differently than intended:
// in postgres://user:12/34@host/db the password was meant to be 12/34, while libpq and pgx see port
// 12 and a database named 34@host/db.
func checkDatabaseURL(text string) error {
	if _, rest, isURL := cutScheme(text); isURL {
		if strings.Contains(afterUser(rest), "@") {
			return errors.New("it has an @ after the host (percent-encode / and @ in the password)")
		}
	} else if !strings.Contains(text, "=") {
		return errors.New("not a connection string")
	}
	_, err := pgxpool.ParseConfig(text)
	if err == nil {
		return nil
	}
	// pgx's message is: cannot parse `…`: problem (cause). Only the text after the string itself is
	// safe to show, and only if the string could be split into its parts.
	problem := err.Error()
	problem = problem[strings.LastIndex(problem, "`: ")+len("`: "):]
	if strings.HasPrefix(problem, "failed to parse as") {
		return errors.New("not a valid connection string")
	}
	return errors.New(problem)
}

// afterUser returns the part of a connection URL, given without its scheme, that follows the user
// and the password. Like libpq, it assumes that these end at the first @ before any /.
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

func readPassword(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // without the path, which the caller shows
		}
		return "", err
	}
	content = bytes.TrimSuffix(content, []byte("\n"))
	content = bytes.TrimSuffix(content, []byte("\r"))
	if len(content) == 0 {
		return "", errors.New("the file is empty")
	}
	if bytes.ContainsAny(content, "\n\x00") {
		return "", errors.New("the file has more than one line")
	}
	return string(content), nil
}

// errNoDatabase is the error of serve and migrate if DATABASE_URL is not set.
var errNoDatabase = usageError{errors.New(
	"DATABASE_URL is not set: use DATABASE_URL=postgres://user@host:5432/database," +
		" or try the service with a private PostgreSQL: coupond dev")}

// connString returns the connection string with the password. load has checked the configuration.
func (c databaseConfig) connString() (string, error) {
	if c.URL == "" {
		return "", errNoDatabase
	}
	if c.PasswordFile == "" {
		return c.URL, nil
	}
	password, err := readPassword(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("DATABASE_PASSWORD_FILE=%q: %w", c.PasswordFile, err)
	}
	return withPassword(c.URL, password)
}

// withPassword returns the connection string with password in place of the one it may have. It
// edits the text, because net/url does not support PostgreSQL's lists of hosts
// (host1:5432,host2:5432).
func withPassword(connString, password string) (string, error) {
	scheme, rest, isURL := cutScheme(connString)
	if !isURL {
		// In a keyword/value string the last value of a keyword counts.
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password)
		return connString + " password='" + quoted + "'", nil
	}
	parsed, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return "", errors.New("cannot parse DATABASE_URL") // not err, which may hold a password
	}
	user := url.UserPassword(parsed.ConnConfig.User, password).String()
	connString = scheme + user + "@" + afterUser(rest)
	if parsed, err = pgxpool.ParseConfig(connString); err != nil || parsed.ConnConfig.Password != password {
		return "", usageError{errors.New("DATABASE_URL has a password among its parameters and DATABASE_PASSWORD_FILE is set; set only one of the two")}
	}
	return connString, nil
}

// address returns user, host, port and database for log and error messages, without the password.
func (c databaseConfig) address() string {
	parsed, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return "(invalid connection string)"
	}
	conn := parsed.ConnConfig
	where := net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	if strings.HasPrefix(conn.Host, "/") {
		where = fmt.Sprintf("%s:%d", conn.Host, conn.Port)
	}
	return fmt.Sprintf("%s@%s/%s", conn.User, where, conn.Database)
}
