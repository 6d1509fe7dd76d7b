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

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// settings reads the settings of a command from the environment, and collects what is wrong with
// them, so that everything is reported at once. A setting is a flag with the tag `setting`. Its
// parser, error messages and help follow from its struct tags: default and help are kong's, and
//
//	setting   the environment variable
//	min, max  inclusive bounds of a number or a duration
//	oneof     allowed words, separated by spaces
//	form      key in forms, for rules that the tags above cannot express
//	secret    the value is never shown
type settings struct {
	environ  []string // NAME=value
	problems error    // nil, or one line for each
}

// listenSettings names the address of the service.
type listenSettings struct {
	ListenAddr string `setting:"LISTEN_ADDR" default:"${listen_addr}" form:"address" help:"address to listen on"`
}

// serviceSettings sets the limits of the service and its log.
type serviceSettings struct {
	DBMaxConns int `setting:"DB_MAX_CONNS" default:"16" min:"1" max:"1000" help:"connections for calls to PostgreSQL, at most (behind a proxy, some more watch the shards)"`
	// ADR 0008 has the measurements behind the default.
	ClaimConcurrency int           `setting:"CLAIM_CONCURRENCY" default:"1"    min:"1"    max:"1000"    help:"calls with batches of claims in flight at once (behind a proxy: for each shard); at most DB_MAX_CONNS"`
	ClaimQueue       int           `setting:"CLAIM_QUEUE"       default:"4096" min:"1"    max:"65536"   help:"limit of pending claims (behind a proxy: for each shard), of waiting reads, and of waiting creations; further ones are answered 503"`
	ClaimTimeout     time.Duration `setting:"CLAIM_TIMEOUT"     default:"5s"   min:"20ms" max:"10m"     help:"time limit for answering a claim"`
	ShutdownTimeout  time.Duration `setting:"SHUTDOWN_TIMEOUT"  default:"30s"  min:"10ms" max:"1h"      help:"time limit for answering open requests during a shutdown"`
	// The default is more than the 60 s of HAProxy's examples, nginx and AWS, and still frees the
	// connection of a client that has left within minutes. The maximum is more than Envoy's hour.
	IdleTimeout time.Duration `setting:"IDLE_TIMEOUT" default:"2m" min:"1s" max:"24h" help:"time until an idle connection is closed; must be longer than the load balancer's"`

	LogLevel  string `setting:"LOG_LEVEL"  default:"info" oneof:"debug info warn error" help:"lowest level that is logged"`
	LogFormat string `setting:"LOG_FORMAT" default:"auto" oneof:"auto json console"     help:"format of log lines; auto is console on a terminal, else json"`
}

// AfterApply compares settings that are valid on their own. One that is not valid is zero here.
func (c *serviceSettings) AfterApply(s *settings) error {
	if c.DBMaxConns >= 1 && c.ClaimConcurrency > c.DBMaxConns {
		s.problem("CLAIM_CONCURRENCY=\"%d\": each batch needs a connection; must be at most DB_MAX_CONNS, which is %d", c.ClaimConcurrency, c.DBMaxConns)
	}
	return nil
}

// forms are the rules that bounds and words cannot express: a description of the allowed values,
// and a check.
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

func checkAddress(address string) error {
	_, port, _ := net.SplitHostPort(address) // after an error, port is empty
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errNotAllowed
	}
	return nil
}

// errNotAllowed is for a value about which there is nothing more to say.
var errNotAllowed = errors.New("not allowed")

// resolve returns the value of a flag that is not on the command line, or nil if its variable is
// empty or not set.
func (s *settings) resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, variable := range slices.Backward(s.environ) {
		if value, ok := strings.CutPrefix(variable, flag.Tag.Get("setting")+"="); ok && value != "" {
			return value, nil
		}
	}
	return nil, nil
}

// decode parses and checks the value of a flag. It collects what is wrong instead of returning it,
// because kong would stop at the first error.
func (s *settings) decode(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("value", &text); err != nil {
		return fmt.Errorf("no value; write --%s=VALUE", ctx.Value.Name)
	}
	name, tag := ctx.Value.Tag.Get("setting"), ctx.Value.Tag
	switch err := set(target, tag, text); {
	case err == nil:
	case tag.Has("secret"): // the error has one line for each problem, and says what is allowed
		s.problem("%s: %s", name, strings.ReplaceAll(err.Error(), "\n", "\n"+name+": "))
	default:
		s.problem("%s=%.100q: %v; must be %s", name, text, err, allowed(ctx.Value))
	}
	return nil
}

// set sets target to the value in text, if it is allowed. A string is set in any case.
func set(target reflect.Value, tag *kong.Tag, text string) error {
	if target.Kind() != reflect.String {
		n, err := parse(target.Type(), text)
		low, _ := parse(target.Type(), tag.Get("min"))
		high, _ := parse(target.Type(), tag.Get("max"))
		if err != nil || n < low || n > high {
			return errNotAllowed
		}
		target.SetInt(n)
		return nil
	}
	target.SetString(text)
	if words := strings.Fields(tag.Get("oneof")); len(words) > 0 && !slices.Contains(words, text) {
		return errNotAllowed
	}
	if tag.Has("form") {
		return forms[tag.Get("form")].check(text)
	}
	return nil
}

// parse parses a number, or a duration as its nanoseconds.
func parse(t reflect.Type, text string) (int64, error) {
	if t == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		return int64(d), err
	}
	return strconv.ParseInt(text, 10, 64)
}

// allowed describes the allowed values of a setting.
func allowed(v *kong.Value) string {
	between := "from " + v.Tag.Get("min") + " to " + v.Tag.Get("max")
	switch {
	case v.Tag.Has("oneof"):
		return "one of " + strings.Join(strings.Fields(v.Tag.Get("oneof")), ", ")
	case v.Tag.Has("form"):
		return forms[v.Tag.Get("form")].allowed
	case v.Target.Type() == reflect.TypeFor[time.Duration]():
		return "a duration such as 500ms, 5s or 1m, " + between
	default:
		return "a whole number " + between
	}
}

// describe returns the help on a flag.
func describe(v *kong.Value) string {
	if name := v.Tag.Get("setting"); name != "" {
		return fmt.Sprintf("%s: %s. Must be %s.", name, v.Help, allowed(v))
	}
	return v.Help
}

func (s *settings) problem(format string, args ...any) {
	s.problems = errors.Join(s.problems, fmt.Errorf(format, args...))
}

// effective returns the settings of the command for the log, secrets hidden.
func effective(command *kong.Context) *zerolog.Event {
	dict := zerolog.Dict()
	for _, flag := range command.Flags() {
		switch name := flag.Tag.Get("setting"); {
		case flag.Tag.Has("secret"):
			dict.Str(name, "(hidden)")
		case name != "":
			dict.Str(name, fmt.Sprint(flag.Target.Interface()))
		}
	}
	return dict
}
