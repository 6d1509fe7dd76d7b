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

// A command's configuration is a struct of the groups below, read from the environment by load. The tags are the only place
// where a variable is described: they make the parser, the check, the error message and the help.
//
//	env, envDefault  name and default (see caarlos0/env)
//	help             what it means
//	fallback         how the help calls a default that is no constant
//	min, max         bounds of a number or a duration, both included
//	oneof            the words allowed
//	form             a name of forms, for what bounds cannot say
//	secret           the value is never shown

// databaseConfig says which PostgreSQL.
type databaseConfig struct {
	URL          string `env:"DATABASE_URL"           fallback:"required"  form:"database"                                                      help:"connection string of PostgreSQL" secret:"true"`
	PasswordFile string `env:"DATABASE_PASSWORD_FILE" form:"password file" help:"file that holds the password, in place of one in DATABASE_URL"`
}

// listenConfig says where the service is.
type listenConfig struct {
	Addr string `env:"LISTEN_ADDR" envDefault:":8080" form:"address" help:"where the service listens"`
}

// serviceConfig says how to serve.
type serviceConfig struct {
	MaxConns int32 `env:"DB_MAX_CONNS" envDefault:"16" help:"most connections to PostgreSQL" max:"1000" min:"1"`
	// On two cores, one lane was the best (design.md: two calls in flight for one coupon 1.05, three 0.95 of the throughput).
	ClaimLanes      int           `env:"CLAIM_LANES"      envDefault:"1"    help:"calls of claims in flight at once, behind a proxy for each shard; at most DB_MAX_CONNS" max:"1000"    min:"1"`
	ClaimQueue      int           `env:"CLAIM_QUEUE"      envDefault:"4096" help:"claims that may wait in a lane before the next is answered 503" max:"1000000" min:"1"`
	ClaimTimeout    time.Duration `env:"CLAIM_TIMEOUT"    envDefault:"5s"   help:"longest a claim waits for its answer"                           max:"10m"     min:"10ms"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"30s"  help:"longest a stop waits for requests to be answered"               max:"1h"      min:"10ms"`
}

// conflict tells what is wrong with values that are each in range. One that did not parse is zero here.
func (c *serviceConfig) conflict() string {
	if c.MaxConns >= 1 && c.ClaimLanes > int(c.MaxConns) {
		return fmt.Sprintf("CLAIM_LANES=\"%d\": each lane needs a connection; allowed is at most DB_MAX_CONNS, which is %d", c.ClaimLanes, c.MaxConns)
	}
	return ""
}

// logConfig says what is logged, and how.
type logConfig struct {
	Level  string `env:"LOG_LEVEL"  envDefault:"info"                           help:"least severity that is logged" oneof:"debug info warn error"`
	Format string `env:"LOG_FORMAT" fallback:"console on a terminal, else json" help:"how a log line looks"          oneof:"json console"`
}

// forms are the rules that are no bounds: what is allowed, in words, and the check. A value that is not set is not checked.
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
		"a file that can be read and holds one line", func(path string) error { _, err := readPassword(path); return err },
	},
}

// environment holds the variables by name.
type environment map[string]string

// variable is one environment variable: a field of a configuration, with the tags that describe it.
type variable struct {
	reflect.StructField

	value reflect.Value
}

// variables lists the variables of the configuration that config points to, in its order.
func variables(config any) []variable {
	var list []variable
	for _, group := range groups(config) {
		for i := range group.NumField() {
			list = append(list, variable{group.Type().Field(i), group.Field(i)})
		}
	}
	return list
}

// groups lists the structs that make up the configuration that config points to.
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

// allowed says in words what a value may be.
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

// check returns what is wrong with a value that was parsed, errOutOfRange when there is nothing more to say than allowed does.
func (v variable) check() error {
	if v.value.IsZero() && v.Tag.Get("envDefault") == "" {
		return nil // not set
	}
	switch {
	case v.Tag.Get("oneof") != "":
		if !slices.Contains(strings.Fields(v.Tag.Get("oneof")), v.value.String()) {
			return errOutOfRange
		}
	case v.Tag.Get("form") != "":
		return forms[v.Tag.Get("form")].check(v.value.String())
	default:
		if n := v.value.Int(); n < v.bound("min") || n > v.bound("max") {
			return errOutOfRange
		}
	}
	return nil
}

var errOutOfRange = errors.New("out of range")

// bound reads the tag min or max. That each of them parses is the test's business, so a wrong one is a panic.
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

// shown is the value as it may be logged.
func (v variable) shown() string {
	if v.secret() {
		return "(hidden)"
	}
	return fmt.Sprint(v.value.Interface())
}

// load reads the configuration that config points to, a struct of groups. Every wrong value is reported, not only the first.
// The error is a usageError and never shows a password.
func load(vars environment, config any) error {
	failed := map[string]bool{} // Go names of the fields that did not parse
	if err := env.ParseWithOptions(config, env.Options{Environment: vars}); err != nil {
		var all env.AggregateError
		if !errors.As(err, &all) {
			return err
		}
		for _, one := range all.Errors {
			var parse env.ParseError
			if !errors.As(one, &parse) {
				return err // a mistake in our tags
			}
			failed[parse.Name] = true
		}
	}

	var problems []string
	for _, v := range variables(config) {
		err := errOutOfRange
		if !failed[v.Name] {
			err = v.check()
		}
		if err == nil {
			continue
		}
		problem := fmt.Sprintf("%s=%q", v.name(), shorten(vars[v.name()]))
		if v.secret() {
			problem = v.name() + " (not shown here, it may hold a password)"
		}
		if !errors.Is(err, errOutOfRange) {
			problem += ": " + err.Error()
		}
		problems = append(problems, problem+"; allowed is "+v.allowed())
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
		return usageError{fmt.Errorf("%d settings are wrong:\n  %s", len(problems), strings.Join(problems, "\n  "))}
	}
}

// shorten keeps a value that was set by accident (a whole file, say) from filling the screen.
func shorten(value string) string {
	const most = 100
	if len(value) <= most {
		return value
	}
	return value[:most] + "…"
}

// describe makes the help on the variables of the configuration that config points to.
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

// fold breaks a text into lines of at most width characters, between words.
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

// effective is the configuration for the log: every variable with the value that holds, secrets hidden.
func effective(config any) *zerolog.Event {
	dict := zerolog.Dict()
	for _, v := range variables(config) {
		dict.Str(v.name(), v.shown())
	}
	return dict
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errOutOfRange
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errOutOfRange
	}
	return nil
}

// checkDatabaseURL tells whether pgx can read the connection string, without ever repeating a part of it that might be the
// password. pgx hides what it recognises as one, but in a string that does not parse nobody knows where the password ends,
// and some that do parse were meant differently: in postgres://user:12/34@host/db the password is 12/34 for the writer, while
// libpq and pgx see port 12 and a database called 34@host/db.
func checkDatabaseURL(text string) error {
	if _, rest, isURL := cutScheme(text); isURL {
		if strings.Contains(behindUser(rest), "@") {
			return errors.New("it has an @ behind the host, as if the password held a / or @ that is not percent-encoded")
		}
	} else if !strings.Contains(text, "=") {
		return errors.New("it is no connection string")
	}
	_, err := pgxpool.ParseConfig(text)
	if err == nil {
		return nil
	}
	// pgx says: cannot parse `…`: what (why). Only what is behind the string itself, and only when the string could be split into
	// its parts, so that they are known.
	problem := err.Error()
	problem = problem[strings.LastIndex(problem, "`: ")+len("`: "):]
	if strings.HasPrefix(problem, "failed to parse as") {
		return errors.New("it cannot be split into its parts")
	}
	return errors.New(problem)
}

// behindUser returns what stands behind the user and password in a connection URL without its scheme. Like libpq, it takes the
// first @ before any / for their end.
func behindUser(rest string) string {
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
			err = cause.Err // the path is shown already
		}
		return "", err
	}
	content = bytes.TrimSuffix(content, []byte("\n"))
	content = bytes.TrimSuffix(content, []byte("\r"))
	if len(content) == 0 {
		return "", errors.New("it is empty")
	}
	if bytes.ContainsAny(content, "\n\x00") {
		return "", errors.New("it holds more than one line of text")
	}
	return string(content), nil
}

// errNoDatabase is what serve and migrate say when they were not told which database.
var errNoDatabase = usageError{errors.New(
	"DATABASE_URL is not set: name the PostgreSQL to use, as in DATABASE_URL=postgres://user@host:5432/database;" +
		" or try the service with one of its own: coupond dev")}

// connString returns the connection string with the password in it. The configuration has been checked by load.
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

// withPassword puts password into a connection string, in place of the one that may be there. It does so in the text and not
// by net/url, which does not know PostgreSQL's lists of hosts (host1:5432,host2:5432).
func withPassword(connString, password string) (string, error) {
	scheme, rest, isURL := cutScheme(connString)
	if !isURL {
		// In a keyword/value string the last word wins.
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password)
		return connString + " password='" + quoted + "'", nil
	}
	parsed, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return "", errors.New("DATABASE_URL cannot be parsed") // never err: it may hold a password
	}
	user := url.UserPassword(parsed.ConnConfig.User, password).String()
	connString = scheme + user + "@" + behindUser(rest)
	if parsed, err = pgxpool.ParseConfig(connString); err != nil || parsed.ConnConfig.Password != password {
		return "", usageError{errors.New("DATABASE_URL has a password among its parameters, and DATABASE_PASSWORD_FILE is set as well; set one of the two")}
	}
	return connString, nil
}

// address is the database for log and error messages: whom we log in as, where, and to what; never a password.
func (c databaseConfig) address() string {
	parsed, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return "(not readable)"
	}
	conn := parsed.ConnConfig
	where := net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	if strings.HasPrefix(conn.Host, "/") {
		where = fmt.Sprintf("%s:%d", conn.Host, conn.Port)
	}
	return fmt.Sprintf("%s@%s/%s", conn.User, where, conn.Database)
}
