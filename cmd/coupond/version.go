package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"scalable-coupon-system/db"
)

// Set by the linker: -ldflags '-X main.version=v1.2.3 -X main.commit=…'. If unset, readBuild uses
// what Go has recorded about the checkout (nothing, with -buildvcs=false).
var version, commit string

// build describes the build of this program.
type build struct {
	version string // a tag, or the pseudo-version that Go derives from the commit
	commit  string // the full hash
	note    string // the time of the commit, and whether the build has uncommitted changes
}

func readBuild() build {
	b := build{version: version, commit: commit}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.commit = cmp.Or(b.commit, s.Value)
		case s.Key == "vcs.time":
			b.note += " of " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			b.note += ", with uncommitted changes"
		}
	}
	b.version = cmp.Or(b.version, info.Main.Version, "unknown")
	b.commit = cmp.Or(b.commit, "unknown")
	return b
}

type versionCommand struct{}

// Run prints the versions.
func (versionCommand) Run(std streams) error {
	b := readBuild()
	_, err := fmt.Fprintf(std.stdout, "coupond %s\ncommit  %s%s\nschema  %d\ngo      %s %s/%s\n",
		b.version, b.commit, b.note, db.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
