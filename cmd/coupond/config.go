package main

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caarlos0/env/v11"
	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
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

// listenConfig names the address of the service.
type listenConfig struct {
	Addr string `env:"LISTEN_ADDR" envDefault:":8080" form:"address" help:"address to listen on"`
}

// devListenConfig is listenConfig for dev, which has no authentication and is for one machine.
type devListenConfig struct {
	Addr string `env:"LISTEN_ADDR" envDefault:"127.0.0.1:8080" form:"address" help:"address to listen on"`
}

// serviceConfig sets the limits of the service.
type serviceConfig struct {
	MaxConns int32 `env:"DB_MAX_CONNS" envDefault:"16" help:"connections to PostgreSQL, at most" max:"1000" min:"1"`
	// ADR 0008 has the measurements behind the default.
	ClaimConcurrency int           `env:"CLAIM_CONCURRENCY" envDefault:"1"    help:"calls with batches of claims in flight at once (behind a proxy: for each shard); at most DB_MAX_CONNS" max:"1000"    min:"1"`
	ClaimQueue       int           `env:"CLAIM_QUEUE"       envDefault:"4096" help:"pending claims, at most (behind a proxy: for each shard); also waiting reads, and creations; the next one is answered 503"                         max:"1000000" min:"1"`
	ClaimTimeout     time.Duration `env:"CLAIM_TIMEOUT"     envDefault:"5s"   help:"time limit for answering a claim"                                                           max:"10m"     min:"20ms"`
	ShutdownTimeout  time.Duration `env:"SHUTDOWN_TIMEOUT"  envDefault:"30s"  help:"time limit for answering open requests during a shutdown"                                   max:"1h"      min:"10ms"`
	// The default is more than the 60 s of HAProxy's examples, nginx and AWS, and still frees the
	// connection of a client that has left within minutes. The maximum is more than Envoy's hour.
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"2m" help:"time until an idle connection is closed; must be longer than the load balancer's" max:"24h" min:"1s"`
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
		"postgres://user@host:5432/database (special characters percent-encoded) or 'host=… user=… dbname=…'",
		func(url string) error { _, err := pgstore.ParseURL(url); return err },
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
	if v.value.IsZero() && v.Tag.Get("envDefault") == "" { // not set
		if v.Tag.Get("fallback") == "required" {
			return errNoDatabase
		}
		return nil
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

// problems returns a sentence for each thing that is wrong with the variable. err is that of check,
// text is the value in the environment.
func (v variable) problems(text string, err error) []string {
	shown := fmt.Sprintf("%s=%q", v.name(), shorten(text))
	switch {
	case errors.Is(err, errNoDatabase):
		return []string{err.Error()}
	case v.secret(): // the error has one line for each problem, and says what is allowed
		var problems []string
		for line := range strings.Lines(err.Error()) {
			problems = append(problems, v.name()+": "+strings.TrimSuffix(line, "\n"))
		}
		return problems
	case errors.Is(err, errNotAllowed):
		return []string{shown + ": must be " + v.allowed()}
	default:
		return []string{shown + ": " + err.Error() + "; must be " + v.allowed()}
	}
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
		if err != nil {
			problems = append(problems, v.problems(vars[v.name()], err)...)
		}
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
