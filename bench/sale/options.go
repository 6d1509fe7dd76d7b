package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
)

// options are the settings from the command line.
type options struct {
	URL         string        `arg:"" optional:"" default:"http://127.0.0.1:8080" help:"URL of the service."`
	Users       int           `default:"50000" help:"Number of users."`
	Stock       int           `default:"1000" help:"Amount of the coupon."`
	Connections int           `default:"128" help:"Number of keep-alive connections."`
	Rate        float64       `default:"0" help:"Average number of users that arrive per second; 0: all at once, as fast as the service answers."`
	Repeats     float64       `default:"5" help:"Percent of the users that claim a second time."`
	Coupon      string        `placeholder:"NAME" help:"Name of the coupon, which must not exist yet (default: sale-<date>-<time>)."`
	Duration    time.Duration `default:"2m" help:"Stop the sale after this time."`
	Timeout     time.Duration `default:"10s" help:"How long a user waits for an answer before a retry."`
	Plot        string        `placeholder:"FILE.svg" help:"Write a chart of the sale to this file."`
	AllowRemote bool          `help:"Allow a service that is not on this machine. Only send load to your own."`

	address string // "host:port" of the service
}

const description = `Run a flash sale against a running service and check every answer.

The exit status is 0 if every check passed, 1 if one failed or the sale could not be run, and 2 if the command line is wrong.`

// errHelp means that the help was printed.
var errHelp = errors.New("help")

// parse parses the command line. The error has every value that is wrong. For --help it writes the
// help to out and returns errHelp.
func parse(ctx context.Context, args []string, out io.Writer) (options, error) {
	var o options
	help := false
	parser, err := kong.New(&o, kong.Name("sale"), kong.Description(description), kong.Writers(out, out), kong.Exit(func(int) { help = true }))
	if err != nil {
		return o, err
	}
	_, err = parser.Parse(args)
	if help {
		return o, errHelp
	}
	if err != nil {
		return o, err
	}
	if o.Coupon == "" {
		o.Coupon = time.Now().Format("sale-20060102-150405.000")
	}
	o.address, err = address(ctx, o.URL, o.AllowRemote)
	return o, errors.Join(err, o.check())
}

// check returns an error for every value that is out of range.
func (o *options) check() error {
	var errs []error
	expect := func(ok bool, name string, value any, allowed string) {
		if !ok {
			errs = append(errs, fmt.Errorf("--%s %v: must be %s", name, value, allowed))
		}
	}
	expect(o.Users >= 1 && o.Users <= 10_000_000, "users", o.Users, "from 1 to 10000000")
	expect(o.Stock >= 1 && o.Stock <= math.MaxInt32, "stock", o.Stock, "from 1 to 2147483647")
	expect(o.Connections >= 1 && o.Connections <= 20_000, "connections", o.Connections, "from 1 to 20000")
	expect(o.Rate >= 0 && o.Rate <= 1e6, "rate", o.Rate, "from 0 (all at once) to 1000000 per second")
	expect(o.Repeats >= 0 && o.Repeats <= 100, "repeats", o.Repeats, "from 0 to 100 percent")
	expect(o.Duration > 0, "duration", o.Duration, "more than 0")
	expect(o.Timeout > 0, "timeout", o.Timeout, "more than 0")
	expect(o.Plot == "" || strings.HasSuffix(o.Plot, ".svg"), "plot", o.Plot, "a name that ends in .svg")
	if need := float64(o.Users) * (1 + o.Repeats/100) / o.Rate; len(errs) == 0 && o.Rate > 0 {
		expect(need <= o.Duration.Seconds(), "rate", o.Rate, fmt.Sprintf("more: the users need %.0f s to arrive, and --duration is %s", need, o.Duration))
	}
	return errors.Join(errs...)
}

// describe returns the sale in one line.
func (o *options) describe() string {
	repeats, pace := "", "all at once"
	if o.Repeats > 0 {
		repeats = " (" + strconv.FormatFloat(o.Repeats, 'g', -1, 64) + " % twice)"
	}
	if o.Rate > 0 {
		pace = humanize.CommafWithDigits(o.Rate, 2) + " per second"
	}
	return fmt.Sprintf("%s%s for %s · %s · %s", formatCount(o.Users, "user"), repeats, formatCount(o.Stock, "coupon"), formatCount(o.Connections, "connection"), pace)
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
	case u.Scheme != "http", u.Hostname() == "", u.Path != "" && u.Path != "/", u.RawQuery != "", u.User != nil:
		return "", fmt.Errorf("%s: must be a url like http://127.0.0.1:8080", target)
	}
	if !allowRemote {
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		if err != nil {
			return "", err
		}
		for _, ip := range found {
			if ip = ip.Unmap(); !ip.IsLoopback() {
				return "", fmt.Errorf("%s is not this machine (%s): use 127.0.0.1, or --allow-remote", u.Hostname(), ip)
			}
		}
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), nil
}
