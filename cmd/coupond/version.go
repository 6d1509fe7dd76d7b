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

// Set by the linker: -ldflags '-X main.version=v1.2.3 -X main.commit=…'. What is not set is what Go itself found out about the
// checkout that the binary was built from (nothing, with -buildvcs=false).
var version, commit string

// build says which program this is.
type build struct {
	version string // a tag, or what Go makes of the commit
	commit  string // the full hash
	time    string // of the commit, RFC 3339; may be empty
	dirty   bool   // built from files that differ from the commit
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
		commit += ", with changes"
	}
	return fmt.Sprintf("coupond %s\ncommit  %s\nschema  %d\ngo      %s %s/%s",
		b.version, commit, db.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and the schema version this binary brings",
		Long: `Print the version of this binary, the commit it was built from, the version of
the database schema that its migrate command installs, and its Go version and
platform.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, readBuild())
			return err
		},
	}
}
