// Command coupond is the coupon service and everything needed to run it. One binary serves
// requests, migrates a database, checks the health of a running service, and starts a private
// PostgreSQL for trying the service out.
//
// This package only wires the parts together: db holds the claim logic, pgstore calls it, and api
// serves HTTP.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"scalable-coupon-system/db"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		// Caught until the end: when a terminal is closed, SIGHUP may come twice, from the kernel and
		// from the shell.
		ctx, _ = signal.NotifyContext(ctx, syscall.SIGHUP)
	}
	// The first signal starts a graceful shutdown and restores the default handling of SIGINT and
	// SIGTERM, before anything is logged, so that a second one ends the process at once.
	stopping, cancel := context.WithCancelCause(context.Background())
	context.AfterFunc(ctx, func() {
		stop()
		cancel(context.Cause(ctx))
	})
	os.Exit(run(stopping, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// Exit codes other than 0, success.
const (
	exitFailure = 1 // the command failed
	exitUsage   = 2 // wrong usage: an unknown flag, an invalid setting
)

const description = `coupond is a coupon service for flash sales. It hands out a limited number of coupons to many users at once: never more than there are, and at most one of each coupon to a user.

To try it, with nothing else installed: coupond dev

To run it on your PostgreSQL: coupond migrate && coupond serve

Exit status: 0 success, 1 failure, 2 wrong usage or settings.`

// commands is the command line.
type commands struct {
	Serve       serveCommand       `cmd:"" name:"serve"       help:"Serve coupons over HTTP from the PostgreSQL named by DATABASE_URL"`
	Dev         devCommand         `cmd:"" name:"dev"         help:"Serve with a private PostgreSQL; nothing to install"`
	Migrate     migrateCommand     `cmd:"" name:"migrate"     help:"Migrate the schema in DATABASE_URL to this version"`
	SQL         sqlCommand         `cmd:"" name:"sql"         help:"Print the schema and functions as a psql script"`
	Healthcheck healthcheckCommand `cmd:"" name:"healthcheck" help:"Check whether the running service is ready: exit status 0 or 1"`
	VersionInfo versionCommand     `cmd:"" name:"version"     help:"Print the versions of this binary and of its schema"`

	Version kong.VersionFlag `help:"Print the version."`
}

// run runs the command line args, without the program's name, and returns the exit code. It shuts
// down gracefully when ctx is done. environ is a list of NAME=value. The result goes to stdout, the
// log and progress to stderr.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	errs := newOutput(stderr)
	defer errs.close()
	err := runCommand(ctx, args, &settings{environ: environ}, stdout, errs)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(errs, "coupond: %s\n", hideConnStrings(err.Error(), slices.Concat(args, environ)))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// hideConnStrings replaces arguments and values in an error that may be connection strings: one
// that is given in the wrong place may hold a password. A source is an argument, --name=value or
// NAME=value.
func hideConnStrings(text string, sources []string) string {
	const hidden = "(not shown, because it may hold a password)"
	for _, source := range sources {
		_, value, _ := strings.Cut(source, "=")
		for _, part := range []string{source, value} {
			isPair := strings.Contains(part, "=") && strings.Contains(strings.ToLower(part), "password")
			if strings.Contains(part, "://") || isPair {
				quoted, short := strconv.Quote(part), fmt.Sprintf("%.100q", part) // as settings shows it
				text = strings.NewReplacer(quoted, hidden, short, hidden, part, hidden, quoted[1:len(quoted)-1], hidden).Replace(text)
			}
		}
	}
	return text
}

// usageError is an error in the command line or the settings. The exit code is exitUsage.
type usageError struct{ error }

func runCommand(ctx context.Context, args []string, s *settings, stdout io.Writer, stderr *output) error {
	version, _ := readBuild()
	done := false // after --help and --version
	parser, err := kong.New(&commands{},
		kong.Name("coupond"), kong.Description(description), kong.Vars{"version": "coupond " + version},
		kong.Writers(stdout, stderr), kong.Exit(func(int) { done = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}), kong.ValueFormatter(describe),
		kong.TypeMapper(reflect.TypeFor[string](), kong.MapperFunc(s.decode)),
		kong.TypeMapper(reflect.TypeFor[int](), kong.MapperFunc(s.decode)),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(s.decode)),
		kong.Resolvers(kong.ResolverFunc(s.resolve)),
		kong.Bind(s, stderr), kong.BindTo(stdout, (*io.Writer)(nil)), kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		return err
	}
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:], "--help")
	}
	command, err := parser.Parse(args)
	switch parseErr, ok := errors.AsType[*kong.ParseError](err); {
	case done:
		return nil
	case ok:
		return usageError{fmt.Errorf("%w (see: %s --help)", err, strings.TrimSpace("coupond "+parseErr.Context.Command()))}
	case err != nil:
		return err
	}
	if s.problems != nil {
		return usageError{errors.New(strings.ReplaceAll(s.problems.Error(), "\n", "\n  "))}
	}
	return command.Run()
}

type sqlCommand struct{}

// Help returns the details of the command's help.
func (sqlCommand) Help() string {
	return `The script does what migrate does; read it or run it yourself:

    coupond sql >install.sql
    psql --no-psqlrc --file=install.sql postgres://…

Like migrate, it only adds what is missing and can be run again. Unlike migrate, it stops if it does not get a lock within half a second.`
}

// Run prints the script.
func (sqlCommand) Run(stdout io.Writer) error {
	script, err := db.Script()
	if err != nil {
		return err
	}
	_, err = io.WriteString(stdout, script)
	return err
}

// Set by the linker: -ldflags '-X main.version=v1.2.3 -X main.commit=…'. If unset, readBuild uses
// what Go has recorded about the checkout (nothing, with -buildvcs=false).
var version, commit string

// readBuild returns the version of this program, a tag or the pseudo-version that Go derives from
// the commit, and the full hash of the commit.
func readBuild() (ofVersion, ofCommit string) {
	ofVersion, ofCommit = version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		ofVersion = cmp.Or(ofVersion, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				ofCommit = cmp.Or(ofCommit, s.Value)
			}
		}
	}
	return cmp.Or(ofVersion, "unknown"), cmp.Or(ofCommit, "unknown")
}

type versionCommand struct{}

// Run prints the versions.
func (versionCommand) Run(stdout io.Writer) error {
	version, commit := readBuild()
	_, err := fmt.Fprintf(stdout, "coupond %s\ncommit  %s\nschema  %d\ngo      %s %s/%s\n",
		version, commit, db.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
