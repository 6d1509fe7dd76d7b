package localpg

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lookIn makes searchDirs contain only patterns, and downloadDir an empty directory.
func lookIn(t *testing.T, patterns ...string) {
	t.Helper()
	savedDirs, savedDownloadDir := searchDirs, downloadDir
	t.Cleanup(func() { searchDirs, downloadDir = savedDirs, savedDownloadDir })
	downloadDir = filepath.Join(newDir(t), "downloads")
	searchDirs = []func(context.Context) []string{downloaded}
	for _, pattern := range slices.Backward(patterns) {
		searchDirs = slices.Insert(searchDirs, 0, glob(pattern))
	}
}

// versions returns a directory with one fake installation for each version, which can only print
// its version.
func versions(t *testing.T, names ...string) string {
	t.Helper()
	base := newDir(t)
	for _, name := range names {
		bin := filepath.Join(base, name, "bin")
		must(t, os.MkdirAll(bin, 0o755))
		script(t, bin, "initdb", "exit 1")
		script(t, bin, "postgres", "echo 'postgres (PostgreSQL) "+name+" (Debian)'")
	}
	return base
}

func newFinder(t *testing.T, want int) (finder, *logBuffer) {
	t.Helper()
	account, err := serverAccount("")
	must(t, err)
	log := &logBuffer{}
	return finder{account: account, want: want, data: "/the/data", logf: func(format string, _ ...any) {
		_, _ = log.Write([]byte(format + "\n"))
	}}, log
}

func TestFindInstallation_newestInFirstDir(t *testing.T) {
	first, second := versions(t, "9.6.24", "15.4", "16.1"), versions(t, "14.2", "18beta1", "17.0")
	lookIn(t, filepath.Join(first, "*", "bin"), filepath.Join(second, "*", "bin"))

	for want, version := range map[int]string{
		0:  "16.1",    // the newest in the first directory
		15: "15.4",    // the one that created the cluster
		18: "18beta1", // which is in a later directory
	} {
		f, _ := newFinder(t, want)
		found, err := findInstallation(t.Context(), f)
		if err != nil || found.version != version {
			t.Errorf("for a cluster of version %d: got %+v, %v; want version %s", want, found, err, version)
		}
	}

	f, _ := newFinder(t, 13)
	_, err := findInstallation(t.Context(), f)
	wantError(t, err, "/the/data was created by PostgreSQL 13, and the installed version is 18beta1")
}

func TestFindInstallation_existingClusterInstallsNothing(t *testing.T) {
	lookIn(t)
	f, log := newFinder(t, 16)
	_, err := findInstallation(t.Context(), f)
	wantError(t, err, "/the/data was created by PostgreSQL 16, and no PostgreSQL is installed on this machine: install version 16")
	if log.String() != "" {
		t.Errorf("PostgreSQL was installed: %s", log)
	}
}

func TestFindInstallation_binDir(t *testing.T) {
	t.Parallel()
	base := versions(t, "14.9", "15.1")
	f, _ := newFinder(t, 0)

	f.binDir = filepath.Join(base, "15.1", "bin")
	found, err := findInstallation(t.Context(), f)
	if err != nil || found != (installation{dir: f.binDir, version: "15.1", major: 15}) {
		t.Errorf("got %+v, %v", found, err)
	}
	f.binDir = filepath.Join(base, "14.9", "bin")
	_, err = findInstallation(t.Context(), f)
	wantError(t, err, "PostgreSQL 14.9 in "+f.binDir+" is too old")
	f.binDir = base
	_, err = findInstallation(t.Context(), f)
	wantError(t, err, "BinDir", "initdb")
	script(t, filepath.Join(base, "15.1", "bin"), "postgres", "echo hello")
	f.binDir = filepath.Join(base, "15.1", "bin")
	_, err = findInstallation(t.Context(), f)
	wantError(t, err, `--version printed "hello\n"`)
}

// The real searchDirs: a machine that runs these tests with its own binaries has an installation in
// one of them.
func TestFindInstallation_thisMachine(t *testing.T) {
	t.Parallel()
	found, err := realInstallation()
	must(t, err)
	if found.major < oldestMajor || !isFile(filepath.Join(found.dir, "initdb")) {
		t.Errorf("found %+v", found)
	}
}

// archive is like the archives that embedded-postgres downloads, with scripts that run the programs
// in $LOCALPG_TEST_BIN. It was made by
//
//	printf '#!/bin/sh\nexec "$LOCALPG_TEST_BIN/initdb" "$@"\n' >bin/initdb
//	# likewise for pg_ctl and postgres
//	chmod 755 bin/*
//	tar --owner=0 --group=0 --numeric-owner --mtime=2026-01-01 --sort=name -cf - bin | xz -9
//
//go:embed testdata/postgres.txz
var archive []byte

// mavenRepository starts a Maven repository with the archive. It counts the downloads.
func mavenRepository(t *testing.T) (downloads *int) {
	t.Helper()
	var jar bytes.Buffer
	files := zip.NewWriter(&jar)
	file, err := files.Create("postgres-linux-x86_64.txz")
	must(t, err)
	_, err = file.Write(archive)
	must(t, err)
	must(t, files.Close())
	sum := sha256.Sum256(jar.Bytes())

	downloads = new(int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.Contains(r.URL.Path, "/"+string(downloadVersion)+"/"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".sha256"):
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
		default:
			*downloads++
			_, _ = w.Write(jar.Bytes())
		}
	}))
	t.Cleanup(server.Close)
	saved := downloadURL
	t.Cleanup(func() { downloadURL = saved })
	downloadURL = server.URL
	return downloads
}

func TestFinder_download(t *testing.T) {
	machine, err := realInstallation()
	must(t, err)
	lookIn(t)
	t.Setenv("LOCALPG_TEST_BIN", machine.dir)
	t.Setenv("PATH", pathWithoutAptGet(t))
	downloads := mavenRepository(t)
	f, log := newFinder(t, 0)

	for range 2 { // the second one finds the downloaded installation
		found, err := findInstallation(t.Context(), f)
		must(t, err)
		if want := filepath.Join(downloadDir, string(downloadVersion), "bin"); found.dir != want || found.version != machine.version {
			t.Errorf("got %+v, want %s in %s", found, machine.version, want)
		}
	}
	if *downloads != 1 {
		t.Errorf("downloaded %d times, want once", *downloads)
	}
	if !strings.Contains(log.String(), "downloading") {
		t.Errorf("the log does not mention the download: %s", log)
	}
	leftovers, err := filepath.Glob(filepath.Join(downloadDir, ".download-*"))
	if err != nil || leftovers != nil {
		t.Errorf("temporary directories are left: %v %v", leftovers, err)
	}

	server, err := Start(t.Context(), Options{Dir: newCluster(t), Settings: map[string]string{"fsync": "off"}})
	must(t, err)
	must(t, server.Stop())
}

func TestFinder_install_error(t *testing.T) {
	lookIn(t)
	t.Setenv("PATH", pathWithoutAptGet(t))
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	saved := downloadURL
	defer func() { downloadURL = saved }()
	downloadURL = server.URL

	f, _ := newFinder(t, 0)
	_, err := findInstallation(t.Context(), f)
	wantError(t, err, "PostgreSQL 15 or newer is not installed", "apt-get install postgresql", "brew install",
		"download PostgreSQL "+string(downloadVersion))
	if strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("the error mentions apt-get update, but there is no apt-get: %v", err)
	}
}

// Without HOME there is no private directory for a download. Programs in a directory of another
// user, or that another user can write to, are not run.
func TestFinder_privateDownloadDir(t *testing.T) {
	lookIn(t)
	t.Setenv("PATH", pathWithoutAptGet(t))
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	want := ""
	if os.Geteuid() == 0 {
		want = "/var/cache/coupond/postgresql"
	}
	if got := userCacheDir(); got != want {
		t.Errorf("userCacheDir without HOME: %q, want %q", got, want)
	}

	ran := filepath.Join(newDir(t), "ran")
	for _, c := range []struct {
		mode  fs.FileMode
		owner int
	}{{0o777, os.Geteuid()}, {0o775, os.Geteuid()}, {0o755, 4242}} {
		if c.owner != os.Geteuid() && os.Geteuid() != 0 {
			continue // only root can give a directory away
		}
		downloadDir = filepath.Join(versions(t), "downloads")
		bin := filepath.Join(downloadDir, "17.0.0", "bin")
		must(t, os.MkdirAll(bin, 0o755))
		script(t, bin, "initdb", "touch "+ran)
		script(t, bin, "postgres", "touch "+ran+"; echo 'postgres (PostgreSQL) 17.0'")
		must(t, os.Chmod(downloadDir, c.mode))
		must(t, os.Chown(downloadDir, c.owner, -1))
		f, _ := newFinder(t, 0)
		f.account = nil
		_, err := findInstallation(t.Context(), f)
		wantError(t, err, "another user may have put programs into it; remove it", downloadDir)
		if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("mode %o, owner %d: the programs were run", c.mode, c.owner)
		}
	}

	downloadDir = ""
	f, _ := newFinder(t, 0)
	_, err := findInstallation(t.Context(), f)
	wantError(t, err, "PostgreSQL 15 or newer is not installed", "set HOME, or install the PostgreSQL server")
}

func TestFinder_installPackage(t *testing.T) {
	onlyRoot(t)
	for name, c := range map[string]struct {
		aptGet   string // what apt-get does, after it has logged its arguments to calls
		offers   string // what apt-cache show prints
		commands string // the expected apt-get commands
		fails    string // part of the expected error; "": none
	}{
		"a server is installed, without a default cluster": {
			aptGet:   `case "$*" in *postgresql-17) cat "$conf" >>"$calls"; ln -s "$real" "$base/17" ;; esac`,
			offers:   "Depends: postgresql-17",
			commands: "install postgresql-common; install postgresql-17; create_main_cluster = false; ",
		},
		"an image without package lists": {
			aptGet: `case "$*" in
*update) touch "$base/updated" ;;
*postgresql-17) ln -s "$real" "$base/17" ;;
esac`,
			offers:   `$([ -e "$base/updated" ] && echo "Depends: postgresql-17")`,
			commands: "update; install postgresql-common; install postgresql-17; ",
		},
		"package lists that are out of date": {
			aptGet: `case "$*" in
*update) touch "$base/updated" ;;
*postgresql-17) [ -e "$base/updated" ] || exit 100; ln -s "$real" "$base/17" ;;
esac`,
			offers:   "Depends: postgresql-17",
			commands: "install postgresql-common; install postgresql-17; update; install postgresql-common; install postgresql-17; ",
		},
		"too old": {
			offers: "Depends: postgresql-14",
			fails:  "apt-get offers postgresql-14, and version 15 or newer is required",
		},
		"no package": {
			commands: "update; ",
			fails:    "apt-get has no package postgresql",
		},
		"apt-get fails": {
			aptGet:   `echo "E: the disk is full"; exit 100`,
			offers:   "Depends: postgresql-17",
			commands: "install postgresql-common; update; ",
			fails:    "apt-get install postgresql-common: exit status 100\n\tE: the disk is full",
		},
	} {
		t.Run(name, func(t *testing.T) {
			machine, err := realInstallation()
			must(t, err)
			base, tools := newDir(t), newDir(t)
			lookIn(t, filepath.Join(base, "17"))
			server := httptest.NewServer(http.NotFoundHandler())
			defer server.Close()
			savedURL, savedConf := downloadURL, createClusterConf
			defer func() { downloadURL, createClusterConf = savedURL, savedConf }()
			downloadURL, createClusterConf = server.URL, filepath.Join(base, "createcluster.d", "coupond.conf")

			calls := filepath.Join(base, "calls")
			variables := "base='" + base + "' calls='" + calls + "' conf='" + createClusterConf + "' real='" + machine.dir + "'\n"
			script(t, tools, "apt-get", variables+`echo "$*" >>"$calls"`+"\n"+c.aptGet)
			script(t, tools, "apt-cache", variables+`echo "`+c.offers+`"`)
			t.Setenv("PATH", tools+":"+os.Getenv("PATH"))

			f, _ := newFinder(t, 0)
			found, err := findInstallation(t.Context(), f)
			if c.fails == "" {
				must(t, err)
				if found.dir != filepath.Join(base, "17") {
					t.Errorf("found %+v", found)
				}
			} else {
				wantError(t, err, c.fails)
			}
			text, err := os.ReadFile(calls)
			if err != nil && c.commands != "" {
				t.Fatal(err)
			}
			const options = "-q -y -o DPkg::Lock::Timeout=300 --no-install-recommends "
			if got := strings.ReplaceAll(strings.ReplaceAll(string(text), options, ""), "\n", "; "); got != c.commands {
				t.Errorf("commands:\n got %s\nwant %s", got, c.commands)
			}
			if _, err := os.Stat(createClusterConf); !os.IsNotExist(err) {
				t.Errorf("%s still exists: %v", createClusterConf, err)
			}
		})
	}
}

// pathWithoutAptGet returns a PATH with all programs of the current PATH except apt-get.
func pathWithoutAptGet(t *testing.T) string {
	t.Helper()
	dir := newDir(t)
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if entry.Name() != "apt-get" && entry.Type()&fs.ModeDir == 0 {
				// This fails for a name that exists already: the first one on PATH wins.
				_ = os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(dir, entry.Name()))
			}
		}
	}
	return dir
}

func TestFinder_install_concurrent(t *testing.T) {
	machine, err := realInstallation()
	must(t, err)
	lookIn(t)
	t.Setenv("LOCALPG_TEST_BIN", machine.dir)
	t.Setenv("PATH", pathWithoutAptGet(t))
	downloads := mavenRepository(t)

	errs := make(chan error)
	for range 3 {
		f, _ := newFinder(t, 0)
		go func() {
			_, err := findInstallation(context.WithoutCancel(t.Context()), f)
			errs <- err
		}()
	}
	for range 3 {
		must(t, <-errs)
	}
	if *downloads != 1 {
		t.Errorf("downloaded %d times, want once", *downloads)
	}
}
