package main

import (
	"context"
	"errors"
	"flag"
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
)

// options is what the command line asks for.
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

// parse reads the command line. Everything that is wrong with it is told at once; flag.ErrHelp means that help was asked
// for and given on out.
func parse(ctx context.Context, args []string, now time.Time, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("attack", flag.ContinueOnError)
	f.SetOutput(io.Discard) // what flag prints by itself is one wrong value and all of the help
	f.IntVar(&o.users, "users", 50_000, "how many `users` come")
	f.IntVar(&o.stock, "stock", 1_000, "how many `pieces` of the coupon there are")
	f.IntVar(&o.connections, "connections", 128, "how many keep-alive `connections` carry them")
	f.Float64Var(&o.rate, "rate", 0, "how many `a second` arrive on average; 0: all at once, as fast as the connections carry them")
	f.Float64Var(&o.repeats, "repeats", 5, "how many `percent` of the users ask a second time")
	f.Uint64Var(&o.seed, "seed", 1, "`number` that makes the order and the times of arrival; the same one gives the same sale")
	f.StringVar(&o.coupon, "coupon", "", "`name` of the coupon, which must not exist yet (default attack-<date>-<time>)")
	f.DurationVar(&o.duration, "duration", 2*time.Minute, "the longest the sale may last; who has no answer then never gets one")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long a user waits for an answer before asking again")
	f.StringVar(&o.plot, "plot", "", "draw the sale into this `file.svg`")
	f.BoolVar(&o.noColor, "no-color", false, "no colours (as with the variable NO_COLOR)")
	f.BoolVar(&o.allowRemote, "allow-remote", false, "attack a service that is not on this machine; you must be its owner")

	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprintf(out, "attack lets a flash sale loose on a running service and checks every answer.\n\n"+
				"usage: attack [flags] [url]     (default %s)\n\n", defaultURL)
			f.SetOutput(out)
			f.PrintDefaults()
			_, _ = fmt.Fprint(out, "\nIt exits with 0 when the sale was exact, 1 when it was not or could not be held, 2 when the command line is wrong.\n")
		}
		return o, err
	}
	if f.NArg() > 1 {
		return o, fmt.Errorf("one url at most, got %s", strings.Join(f.Args(), " "))
	}
	target := defaultURL
	if f.NArg() == 1 {
		target = f.Arg(0)
	}
	if o.coupon == "" {
		o.coupon = now.Format("attack-20060102-150405.000")
	}
	var err error
	o.address, err = address(ctx, target, o.allowRemote)
	return o, errors.Join(err, o.check())
}

// check tells everything that is out of its range.
func (o *options) check() error {
	var errs []error
	wrong := func(name string, value any, allowed string) {
		errs = append(errs, fmt.Errorf("-%s %v: %s", name, value, allowed))
	}
	if o.users < 1 || o.users > 10_000_000 {
		wrong("users", o.users, "from 1 to 10000000")
	}
	if o.stock < 1 || o.stock > math.MaxInt32 {
		wrong("stock", o.stock, "from 1 to 2147483647")
	}
	if o.connections < 1 || o.connections > 20_000 {
		wrong("connections", o.connections, "from 1 to 20000")
	}
	if !(o.rate >= 0 && o.rate <= 1e6) { // false for what is not a number, too
		wrong("rate", o.rate, "from 0 (all at once) to 1000000 a second")
	}
	if !(o.repeats >= 0 && o.repeats <= 100) {
		wrong("repeats", o.repeats, "from 0 to 100 percent")
	}
	if n := utf8.RuneCountInString(o.coupon); n > 255 || !utf8.ValidString(o.coupon) || strings.TrimSpace(o.coupon) == "" || strings.ContainsRune(o.coupon, 0) {
		wrong("coupon", fmt.Sprintf("%q", o.coupon), "1 to 255 characters of UTF-8, not only white space")
	}
	if o.duration <= 0 {
		wrong("duration", o.duration, "more than 0")
	}
	if o.timeout <= 0 {
		wrong("timeout", o.timeout, "more than 0")
	}
	if o.plot != "" && !strings.HasSuffix(o.plot, ".svg") {
		wrong("plot", o.plot, "a name that ends in .svg")
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if need := time.Duration(float64(o.requests()) / o.rate * float64(time.Second)); o.rate > 0 && need > o.duration {
		return fmt.Errorf("-rate %v: %s requests then take %s, and -duration is %s",
			o.rate, humanize.Comma(int64(o.requests())), need.Round(time.Second), o.duration)
	}
	return nil
}

// requests is how many there are, as [load.Order] makes them.
func (o *options) requests() int {
	return o.users + int(math.Round(float64(o.users)*o.repeats/100))
}

// address takes apart where the service is. Load is for one's own machine: whoever types somebody else's address by
// mistake should get a sentence and not an incident.
func address(ctx context.Context, target string, allowRemote bool) (string, error) {
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	u, err := url.Parse(target)
	switch {
	case err != nil:
		return "", err
	case u.Scheme != "http":
		return "", fmt.Errorf("%s: attack the service itself, by http", target)
	case u.Hostname() == "", u.Path != "" && u.Path != "/", u.RawQuery != "", u.User != nil:
		return "", fmt.Errorf("%s: want a url like %s", target, defaultURL)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	if !allowRemote {
		if err := loopback(ctx, u.Hostname()); err != nil {
			return "", err
		}
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// loopback is an error unless every address of host is this machine's own.
func loopback(ctx context.Context, host string) error {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return err
	}
	for _, ip := range found {
		if ip = ip.Unmap(); !ip.IsLoopback() {
			return fmt.Errorf("%s is not this machine (%s): load goes to 127.0.0.1, unless you say -allow-remote", host, netip.Addr.String(ip))
		}
	}
	return nil
}
