package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// bins is a folder that holds initdb and postgres.
type bins struct {
	dir     string
	version string // "15.18"
	major   int
}

// finder looks for binaries.
type finder struct {
	account *account // who must be able to run them
	want    int      // the major version that made the cluster; 0: any from oldestMajor on
	binDir  string   // Options.BinDir
	data    string   // the cluster's data directory, for errors
	say     func(string, ...any)
}

// places are where PostgreSQL's binaries are on the systems we know, as functions or patterns of paths; the first place that
// has fitting ones wins, and the newest in it. A variable for the tests.
var places = []func(context.Context) []string{
	func(ctx context.Context) []string {
		output, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output()
		if err != nil {
			return nil
		}
		return []string{strings.TrimSpace(string(output))}
	},
	func(context.Context) []string { // distributions that put them on everybody's PATH
		path, err := exec.LookPath("postgres")
		if err != nil {
			return nil
		}
		return []string{filepath.Dir(path)}
	},
	glob("/usr/lib/postgresql/*/bin"),            // Debian, Ubuntu
	glob("/usr/pgsql-*/bin"),                     // PostgreSQL's own RPMs
	glob("/opt/homebrew/opt/postgresql@*/bin"),   // Homebrew on Apple silicon
	glob("/opt/homebrew/opt/postgresql/bin"),     //
	glob("/usr/local/opt/postgresql@*/bin"),      // Homebrew on Intel
	glob("/usr/local/opt/postgresql/bin"),        //
	glob("/Applications/Postgres.app/*/*/*/bin"), // Contents/Versions/17/bin
	func(ctx context.Context) []string { return glob(filepath.Join(downloadFolder, "*", "bin"))(ctx) },
}

func glob(pattern string) func(context.Context) []string {
	return func(context.Context) []string {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil // only a malformed pattern
		}
		return found
	}
}

// find returns the binaries to use. Without fitting ones it gets some, except for a cluster that needs its own version: which
// PostgreSQL is to read old data is for the user to decide.
func find(ctx context.Context, f finder) (bins, error) {
	if f.binDir != "" {
		found, err := f.look(ctx, f.binDir)
		if err != nil {
			return bins{}, fmt.Errorf("BinDir: %w", err)
		}
		if !f.fits(found) {
			return bins{}, f.mismatch(found)
		}
		return found, nil
	}

	found, other := f.search(ctx)
	if found.dir != "" {
		return found, nil
	}
	if ctx.Err() != nil { // nothing was asked to the end
		return bins{}, context.Cause(ctx)
	}
	if f.want != 0 {
		return bins{}, f.mismatch(other)
	}
	return f.get(ctx)
}

// search goes through places. other is the newest that it saw and that does not fit.
func (f finder) search(ctx context.Context) (found, other bins) {
	for _, place := range places {
		for _, dir := range place(ctx) {
			b, err := f.look(ctx, dir)
			switch {
			case err != nil: // none there, or none that works: the next place
			case f.fits(b) && b.major > found.major:
				found = b
			case !f.fits(b) && b.major > other.major:
				other = b
			}
		}
		if found.dir != "" {
			return found, other
		}
	}
	return bins{}, other
}

func (f finder) fits(b bins) bool {
	return b.major >= oldestMajor && (f.want == 0 || f.want == b.major)
}

// mismatch is the error for a found version that is not the one needed.
func (f finder) mismatch(found bins) error {
	switch {
	case f.want == 0:
		return fmt.Errorf("PostgreSQL %s in %s is too old: %d is the oldest that works", found.version, found.dir, oldestMajor)
	case found.dir == "":
		return fmt.Errorf("%s was made by PostgreSQL %d, and there is no PostgreSQL on this machine:"+
			" install version %[2]d, or move %[1]s away to start afresh", f.data, f.want)
	default:
		return fmt.Errorf("%s was made by PostgreSQL %d, and the one on this machine is %s (in %s):"+
			" install version %[2]d beside it, or move %[1]s away to start afresh", f.data, f.want, found.version, found.dir)
	}
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// look asks the binaries in dir for their version, as the account that will run them: so it knows that they are there, complete,
// within its reach and made for this machine.
func (f finder) look(ctx context.Context, dir string) (bins, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return bins{}, err
	}
	output, err := f.account.command(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return bins{}, fmt.Errorf("%s --version: %w", filepath.Join(dir, "postgres"), err)
	}
	match := versionPattern.FindStringSubmatch(string(output))
	if match == nil {
		return bins{}, fmt.Errorf("%s --version says %q", filepath.Join(dir, "postgres"), output)
	}
	major, err := strconv.Atoi(match[2])
	return bins{dir: dir, version: match[1], major: major}, err
}
