package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
)

// options are the settings from the command line.
type options struct {
	address     string // "host:port" of the service
	users       int
	stock       int
	connections int
	rate        float64
	repeats     float64
	seed        uint64
	coupon      string
	duration    time.Duration
	timeout     time.Duration
	plot        string
	noColor     bool
	allowRemote bool
}

const defaultURL = "http://127.0.0.1:8080"

// parse parses the command line. The error has everything that is wrong with it. For --help it
// writes the help to out and returns pflag.ErrHelp.
func parse(ctx context.Context, args []string, now time.Time, out io.Writer) (options, error) {
	var o options
	f := pflag.NewFlagSet("sale", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {
		_, _ = fmt.Fprintf(out, "Run a flash sale against a running service and check every answer.\n\n"+
			"Usage: sale [flags] [url]     (default %s)\n\n%s\n"+
			"The exit status is 0 if every check passed, 1 if one failed or the sale could not be run, and 2 if the\n"+
			"command line is wrong.\n", defaultURL, f.FlagUsages())
	}
	f.IntVar(&o.users, "users", 50_000, "number of `users`")
	f.IntVar(&o.stock, "stock", 1_000, "`amount` of the coupon")
	f.IntVar(&o.connections, "connections", 128, "number of keep-alive `connections`")
	f.Float64Var(&o.rate, "rate", 0, "average `number` of users that arrive per second; 0: all at once, as fast as the service answers")
	f.Float64Var(&o.repeats, "repeats", 5, "`percent` of the users that claim a second time")
	f.Uint64Var(&o.seed, "seed", 1, "`number` that determines the order and the times of the claims")
	f.StringVar(&o.coupon, "coupon", "", "`name` of the coupon, which must not exist yet (default sale-<date>-<time>)")
	f.DurationVar(&o.duration, "duration", 2*time.Minute, "stop the sale after this time")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long a user waits for an answer before a retry")
	f.StringVar(&o.plot, "plot", "", "write a chart of the sale to `file.svg`")
	f.BoolVar(&o.noColor, "no-color", false, "no colours (like the variable NO_COLOR)")
	f.BoolVar(&o.allowRemote, "allow-remote", false, "allow a service that is not on this machine; only send load to your own")

	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 1 {
		return o, fmt.Errorf("%d urls (%s), at most one is allowed", f.NArg(), strings.Join(f.Args(), " "))
	}
	target := defaultURL
	if f.NArg() == 1 {
		target = f.Arg(0)
	}
	if o.coupon == "" {
		o.coupon = now.Format("sale-20060102-150405.000")
	}
	var err error
	o.address, err = address(ctx, target, o.allowRemote)
	return o, errors.Join(err, o.check())
}

// check returns an error for every value that is out of range.
func (o *options) check() error {
	var errs []error
	wrong := func(name string, value any, allowed string) {
		errs = append(errs, fmt.Errorf("--%s %v: %s", name, value, allowed))
	}
	if o.users < 1 || o.users > 10_000_000 {
		wrong("users", o.users, "must be from 1 to 10000000")
	}
	if o.stock < 1 || o.stock > math.MaxInt32 {
		wrong("stock", o.stock, "must be from 1 to 2147483647")
	}
	if o.connections < 1 || o.connections > 20_000 {
		wrong("connections", o.connections, "must be from 1 to 20000")
	}
	if !(o.rate >= 0 && o.rate <= 1e6) { // also false for NaN
		wrong("rate", o.rate, "must be from 0 (all at once) to 1000000 per second")
	}
	if !(o.repeats >= 0 && o.repeats <= 100) {
		wrong("repeats", o.repeats, "must be from 0 to 100 percent")
	}
	if n := utf8.RuneCountInString(o.coupon); n > 255 || !utf8.ValidString(o.coupon) || strings.TrimSpace(o.coupon) == "" || strings.ContainsRune(o.coupon, 0) {
		wrong("coupon", fmt.Sprintf("%q", o.coupon), "must be 1 to 255 characters of UTF-8, not only white space")
	}
	if o.duration <= 0 {
		wrong("duration", o.duration, "must be more than 0")
	}
	if o.timeout <= 0 {
		wrong("timeout", o.timeout, "must be more than 0")
	}
	if o.plot != "" && !strings.HasSuffix(o.plot, ".svg") {
		wrong("plot", o.plot, "must end in .svg")
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if need := time.Duration(float64(o.requests()) / o.rate * float64(time.Second)); o.rate > 0 && need > o.duration {
		return fmt.Errorf("--rate %v: %s requests take %s, more than --duration %s",
			o.rate, humanize.Comma(int64(o.requests())), need.Round(time.Second), o.duration)
	}
	return nil
}

// requests returns the number of requests, which is the length of what [load.Order] returns.
func (o *options) requests() int {
	return o.users + int(math.Round(float64(o.users)*o.repeats/100))
}

// address returns the "host:port" of a URL. Unless allowRemote is set, the host must be this
// machine, so that a typing error does not send load to another one.
func address(ctx context.Context, target string, allowRemote bool) (string, error) {
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	u, err := url.Parse(target)
	switch {
	case err != nil:
		return "", err
	case u.Scheme != "http":
		return "", fmt.Errorf("%s: scheme must be http", target)
	case u.Hostname() == "", u.Path != "" && u.Path != "/", u.RawQuery != "", u.User != nil:
		return "", fmt.Errorf("%s: must be a url like %s", target, defaultURL)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	if !allowRemote {
		if err := checkLoopback(ctx, u.Hostname()); err != nil {
			return "", err
		}
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// checkLoopback returns an error unless every address of host is a loopback address.
func checkLoopback(ctx context.Context, host string) error {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return err
	}
	for _, ip := range found {
		if ip = ip.Unmap(); !ip.IsLoopback() {
			return fmt.Errorf("%s is not this machine (%s): use 127.0.0.1, or --allow-remote", host, netip.Addr.String(ip))
		}
	}
	return nil
}
