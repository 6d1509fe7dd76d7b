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

// installation is a PostgreSQL installation: a directory with initdb and postgres.
type installation struct {
	dir     string
	version string // "15.18"
	major   int
}

// finder looks for an installation that can run the cluster in data.
type finder struct {
	account *account // must be able to run its programs
	want    int      // the major version that created the cluster; 0: oldestMajor or newer
	binDir  string   // Options.BinDir
	data    string   // the cluster's data directory, for error messages
	logf    func(string, ...any)
}

// searchDirs returns candidate directories, one function for each place where a system may install
// PostgreSQL. The first function that returns a suitable installation wins, with the newest of its
// installations. Tests replace it.
var searchDirs = []func(context.Context) []string{
	func(ctx context.Context) []string {
		output, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output()
		if err != nil {
			return nil
		}
		return []string{strings.TrimSpace(string(output))}
	},
	func(context.Context) []string { // distributions that put postgres on PATH
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
	downloaded,
}

// downloaded returns the directories of downloaded installations.
func downloaded(ctx context.Context) []string {
	if checkDownloadDir() != nil {
		return nil
	}
	return glob(filepath.Join(downloadDir, "*", "bin"))(ctx)
}

func glob(pattern string) func(context.Context) []string {
	return func(context.Context) []string {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil // the pattern is malformed
		}
		return found
	}
}

// findInstallation returns the installation to use. Without a suitable one it installs PostgreSQL,
// unless the cluster exists already and needs a certain version: then the user has to decide how to
// read the old data.
func findInstallation(ctx context.Context, f finder) (installation, error) {
	if f.binDir != "" {
		found, err := f.inspect(ctx, f.binDir)
		if err != nil {
			return installation{}, fmt.Errorf("BinDir: %w", err)
		}
		if !f.fits(found) {
			return installation{}, f.mismatch(found)
		}
		return found, nil
	}

	found, other := f.search(ctx)
	if found.dir != "" {
		return found, nil
	}
	if ctx.Err() != nil { // the search may be incomplete
		return installation{}, context.Cause(ctx)
	}
	if f.want != 0 {
		return installation{}, f.mismatch(other)
	}
	return f.install(ctx)
}

// search calls searchDirs in order. other is the newest installation it saw that is not suitable.
func (f finder) search(ctx context.Context) (found, other installation) {
	for _, dirs := range searchDirs {
		for _, dir := range dirs(ctx) {
			pg, err := f.inspect(ctx, dir)
			switch {
			case err != nil: // not a working installation: try the next directory
			case f.fits(pg) && pg.major > found.major:
				found = pg
			case !f.fits(pg) && pg.major > other.major:
				other = pg
			}
		}
		if found.dir != "" {
			return found, other
		}
	}
	return installation{}, other
}

func (f finder) fits(pg installation) bool {
	return pg.major >= oldestMajor && (f.want == 0 || f.want == pg.major)
}

// mismatch returns the error for an installation that is not suitable. The zero installation means
// that none was found.
func (f finder) mismatch(found installation) error {
	switch {
	case f.want == 0:
		return fmt.Errorf("PostgreSQL %s in %s is too old: version %d or newer is required", found.version, found.dir, oldestMajor)
	case found.dir == "":
		return fmt.Errorf("%s was created by PostgreSQL %d, and no PostgreSQL is installed on this machine:"+
			" install version %[2]d, or move %[1]s away to start with a new cluster", f.data, f.want)
	default:
		return fmt.Errorf("%s was created by PostgreSQL %d, and the installed version is %s (in %s):"+
			" install version %[2]d as well, or move %[1]s away to start with a new cluster", f.data, f.want, found.version, found.dir)
	}
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect runs postgres --version as the account that will run the server. This shows that the
// programs exist, that the account may run them, and that they are built for this machine.
func (f finder) inspect(ctx context.Context, dir string) (installation, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return installation{}, err
	}
	output, err := f.account.command(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return installation{}, fmt.Errorf("%s --version: %w", filepath.Join(dir, "postgres"), err)
	}
	match := versionPattern.FindStringSubmatch(string(output))
	if match == nil {
		return installation{}, fmt.Errorf("%s --version printed %q, which is not a PostgreSQL version", filepath.Join(dir, "postgres"), output)
	}
	major, err := strconv.Atoi(match[2])
	return installation{dir: dir, version: match[1], major: major}, err
}
