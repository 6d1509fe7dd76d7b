package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

// Set by the linker: -ldflags '-X main.version=v1.2.3 -X main.commit=…'. If unset, readBuild uses
// what Go has recorded about the checkout (nothing, with -buildvcs=false).
var version, commit string

// build describes the build of this program.
type build struct {
	version string // a tag, or the pseudo-version that Go derives from the commit
	commit  string // the full hash
	time    string // of the commit, RFC 3339; may be empty
	dirty   bool   // built with uncommitted changes
}

func readBuild() build {
	b := build{version: version, commit: commit}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	b.version = cmp.Or(b.version, info.Main.Version, "unknown")
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = cmp.Or(b.commit, s.Value)
		case "vcs.time":
			b.time = s.Value
		case "vcs.modified":
			b.dirty = s.Value == "true"
		}
	}
	b.commit = cmp.Or(b.commit, "unknown")
	return b
}

func (b build) String() string {
	commit := b.commit
	if b.time != "" {
		commit += " of " + b.time
	}
	if b.dirty {
		commit += ", with uncommitted changes"
	}
	return fmt.Sprintf("coupond %s\ncommit  %s\nschema  %d\ngo      %s %s/%s",
		b.version, commit, db.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this binary and of its schema",
		Long: `Print the version of this binary, the commit it was built from, the version of
the database schema that coupond migrate installs, the Go version and the
platform.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, readBuild())
			return err
		},
	}
}
