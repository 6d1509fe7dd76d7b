package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// options are the settings from the command line.
type options struct {
	URL         string        `arg:"" optional:"" default:"http://127.0.0.1:8080" help:"URL of the service; ${default} if none is given."`
	Users       int           `default:"50000" help:"Number of users. One in twenty claims a second time."`
	Stock       int           `default:"1000" help:"Amount of the coupon."`
	Connections int           `default:"128" help:"Number of keep-alive connections."`
	Rate        float64       `default:"0" help:"Average number of users that arrive per second; 0: all at once, as fast as the service answers."`
	Duration    time.Duration `default:"2m" help:"Stop the sale after this time."`
	Timeout     time.Duration `default:"10s" help:"How long a user waits for an answer before a retry."`
	Plot        string        `placeholder:"FILE.svg" help:"Write a chart of the sale to this file."`
	AllowRemote bool          `help:"Allow a service that is not on this machine. Only send load to your own."`

	address string // "host:port" of the service; set by Validate
}

const description = `Run a flash sale against a running service and check every answer.

The exit status is 0 if every check passed, 1 if one failed or the sale could not be run, and 2 if the command line is wrong.`

// repeats is how many percent of the users claim a second time.
const repeats = 5

// Validate is called by kong. It returns an error for every value that is wrong.
func (o *options) Validate() error {
	var errs []error
	expect := func(ok bool, name string, value any, allowed string) {
		if !ok {
			errs = append(errs, fmt.Errorf("--%s %v: must be %s", name, value, allowed))
		}
	}
	expect(o.Users >= 1 && o.Users <= 10_000_000, "users", o.Users, "from 1 to 10000000")
	expect(o.Stock >= 1, "stock", o.Stock, "at least 1")
	expect(o.Connections >= 1, "connections", o.Connections, "at least 1")
	expect(o.Rate >= 0, "rate", o.Rate, "at least 0 (all at once)")
	expect(o.Duration > 0, "duration", o.Duration, "more than 0")
	expect(o.Timeout > 0, "timeout", o.Timeout, "more than 0")
	expect(o.Plot == "" || strings.HasSuffix(o.Plot, ".svg"), "plot", o.Plot, "a name that ends in .svg")
	if need := float64(o.Users) * (1 + repeats/100.) / o.Rate; len(errs) == 0 && o.Rate > 0 {
		expect(need <= o.Duration.Seconds(), "rate", o.Rate, fmt.Sprintf("more: the users need %.0f s to arrive, and --duration is %s", need, o.Duration))
	}
	return errors.Join(append(errs, o.setAddress())...)
}

// setAddress sets the address from the URL. Unless AllowRemote is set, the host must be this
// machine, so that a typing error does not send load to another one.
func (o *options) setAddress() error {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || strings.TrimSuffix(o.URL, "/") != "http://"+u.Host {
		return fmt.Errorf("%s: must be a URL like http://127.0.0.1:8080", o.URL)
	}
	ip, _ := netip.ParseAddr(u.Hostname()) // the zero Addr if it is a name
	if !o.AllowRemote && !ip.IsLoopback() && u.Hostname() != "localhost" {
		return fmt.Errorf("%s is not this machine: use 127.0.0.1, or --allow-remote", u.Hostname())
	}
	o.address = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
	return nil
}

// describe returns the sale in one line.
func (o *options) describe() string {
	pace := "all at once"
	if o.Rate > 0 {
		pace = humanize.CommafWithDigits(o.Rate, 2) + " per second"
	}
	return fmt.Sprintf("%s (%d %% twice) for %s · %s · %s", formatCount(o.Users, "user"), repeats, formatCount(o.Stock, "coupon"), formatCount(o.Connections, "connection"), pace)
}
