package localpg

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lookIn makes the finder look into these folders only, and download into an empty one.
func lookIn(t *testing.T, patterns ...string) {
	t.Helper()
	savedPlaces, savedFolder := places, downloadFolder
	t.Cleanup(func() { places, downloadFolder = savedPlaces, savedFolder })
	downloadFolder = filepath.Join(newDir(t), "downloads")
	places = []func(context.Context) []string{glob(filepath.Join(downloadFolder, "*", "bin"))}
	for _, pattern := range slices.Backward(patterns) {
		places = slices.Insert(places, 0, glob(pattern))
	}
}

// versions is a folder with binaries that only say their version, one folder for each.
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

func newFinder(t *testing.T, want int) (finder, *journal) {
	t.Helper()
	account, err := serverAccount("")
	must(t, err)
	log := &journal{}
	return finder{account: account, want: want, data: "/the/data", say: func(format string, _ ...any) {
		_, _ = log.Write([]byte(format + "\n"))
	}}, log
}

func TestNewestOfTheFirstPlaceWins(t *testing.T) {
	first, second := versions(t, "9.6.24", "15.4", "16.1"), versions(t, "14.2", "18beta1", "17.0")
	lookIn(t, filepath.Join(first, "*", "bin"), filepath.Join(second, "*", "bin"))

	for want, version := range map[int]string{
		0:  "16.1",    // the newest of the first place
		15: "15.4",    // the one that made the cluster
		18: "18beta1", // which may be in a later place
	} {
		f, _ := newFinder(t, want)
		found, err := find(t.Context(), f)
		if err != nil || found.version != version {
			t.Errorf("for a cluster of version %d: got %+v, %v; want %s", want, found, err, version)
		}
	}

	f, _ := newFinder(t, 13)
	_, err := find(t.Context(), f)
	wantError(t, err, "/the/data was made by PostgreSQL 13, and the one on this machine is 18beta1")
}

func TestClusterWithoutAnyBinariesIsNotGivenOthers(t *testing.T) {
	lookIn(t)
	f, log := newFinder(t, 16)
	_, err := find(t.Context(), f)
	wantError(t, err, "/the/data was made by PostgreSQL 16, and there is no PostgreSQL on this machine: install version 16")
	if log.String() != "" {
		t.Errorf("something was got: %s", log)
	}
}

func TestBinDir(t *testing.T) {
	t.Parallel()
	base := versions(t, "14.9", "15.1")
	f, _ := newFinder(t, 0)

	f.binDir = filepath.Join(base, "15.1", "bin")
	found, err := find(t.Context(), f)
	if err != nil || found != (bins{dir: f.binDir, version: "15.1", major: 15}) {
		t.Errorf("got %+v, %v", found, err)
	}
	f.binDir = filepath.Join(base, "14.9", "bin")
	_, err = find(t.Context(), f)
	wantError(t, err, "PostgreSQL 14.9 in "+f.binDir+" is too old")
	f.binDir = base
	_, err = find(t.Context(), f)
	wantError(t, err, "BinDir", "initdb")
	script(t, filepath.Join(base, "15.1", "bin"), "postgres", "echo hello")
	f.binDir = filepath.Join(base, "15.1", "bin")
	_, err = find(t.Context(), f)
	wantError(t, err, `--version says "hello\n"`)
}

// The real places: on a machine that runs these tests with binaries of its own, one of them has those.
func TestPlacesOfThisMachine(t *testing.T) {
	t.Parallel()
	found, err := realBins()
	must(t, err)
	if found.major < oldestMajor || !isFile(filepath.Join(found.dir, "initdb")) {
		t.Errorf("found %+v", found)
	}
}

// The archive of embedded-postgres' download, with programs that run those of $LOCALPG_TEST_BIN. Made by
//
//	printf '#!/bin/sh\nexec "$LOCALPG_TEST_BIN/initdb" "$@"\n' >bin/initdb # and so on for pg_ctl, postgres
//	chmod 755 bin/*; tar --owner=0 --group=0 --numeric-owner --mtime=2026-01-01 --sort=name -cf - bin | xz -9
//
//go:embed testdata/postgres.txz
var archive []byte

// repository is a Maven repository that has the archive, and counts how often it is fetched.
func repository(t *testing.T) (fetched *int) {
	t.Helper()
	var jar bytes.Buffer
	files := zip.NewWriter(&jar)
	file, err := files.Create("postgres-linux-x86_64.txz")
	must(t, err)
	_, err = file.Write(archive)
	must(t, err)
	must(t, files.Close())
	sum := sha256.Sum256(jar.Bytes())

	fetched = new(int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.Contains(r.URL.Path, "/"+string(downloadVersion)+"/"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".sha256"):
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
		default:
			*fetched++
			_, _ = w.Write(jar.Bytes())
		}
	}))
	t.Cleanup(server.Close)
	saved := downloadFrom
	t.Cleanup(func() { downloadFrom = saved })
	downloadFrom = server.URL
	return fetched
}

func TestDownload(t *testing.T) {
	machine, err := realBins()
	must(t, err)
	lookIn(t)
	t.Setenv("LOCALPG_TEST_BIN", machine.dir)
	t.Setenv("PATH", pathWithout(t, "apt-get"))
	fetched := repository(t)
	f, log := newFinder(t, 0)

	for range 2 { // the second time it is there
		found, err := find(t.Context(), f)
		must(t, err)
		if want := filepath.Join(downloadFolder, string(downloadVersion), "bin"); found.dir != want || found.version != machine.version {
			t.Errorf("got %+v, want %s in %s", found, machine.version, want)
		}
	}
	if *fetched != 1 {
		t.Errorf("fetched %d times, want once", *fetched)
	}
	if !strings.Contains(log.String(), "downloading") {
		t.Errorf("the user was not told: %s", log)
	}
	leftovers, err := filepath.Glob(filepath.Join(downloadFolder, ".download-*"))
	if err != nil || leftovers != nil {
		t.Errorf("stays behind: %v %v", leftovers, err)
	}

	server, err := Start(t.Context(), Options{Dir: newCluster(t), Settings: map[string]string{"fsync": "off"}})
	must(t, err)
	must(t, server.Stop())
}

func TestNothingWorks(t *testing.T) {
	lookIn(t)
	t.Setenv("PATH", pathWithout(t, "apt-get"))
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	saved := downloadFrom
	defer func() { downloadFrom = saved }()
	downloadFrom = server.URL

	f, _ := newFinder(t, 0)
	_, err := find(t.Context(), f)
	wantError(t, err, "there is no PostgreSQL 15 or newer on this machine", "apt-get install postgresql", "brew install",
		"download of PostgreSQL "+string(downloadVersion))
	if strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("the error speaks of an apt-get that is not there: %v", err)
	}
}

func TestPackageInstallation(t *testing.T) {
	onlyRoot(t)
	for name, c := range map[string]struct {
		aptGet   string // what the command does, after noting itself in calls
		offers   string // the package list's answer
		commands string // what was called for
		fails    string // part of the error; "": none
	}{
		"a server is installed, without a cluster": {
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
		"lists that name files which are gone": {
			aptGet: `case "$*" in
*update) touch "$base/updated" ;;
*postgresql-17) [ -e "$base/updated" ] || exit 100; ln -s "$real" "$base/17" ;;
esac`,
			offers:   "Depends: postgresql-17",
			commands: "install postgresql-common; install postgresql-17; update; install postgresql-common; install postgresql-17; ",
		},
		"too old": {
			offers: "Depends: postgresql-14",
			fails:  "apt-get offers postgresql-14, and 15 is the oldest that works",
		},
		"no package": {
			commands: "update; ",
			fails:    "apt-get knows no package postgresql",
		},
		"it fails": {
			aptGet:   `echo "E: the disk is full"; exit 100`,
			offers:   "Depends: postgresql-17",
			commands: "install postgresql-common; update; ",
			fails:    "apt-get install postgresql-common: exit status 100\n\tE: the disk is full",
		},
	} {
		t.Run(name, func(t *testing.T) {
			machine, err := realBins()
			must(t, err)
			base, tools := newDir(t), newDir(t)
			lookIn(t, filepath.Join(base, "17"))
			server := httptest.NewServer(http.NotFoundHandler())
			defer server.Close()
			savedFrom, savedConf := downloadFrom, createCluster
			defer func() { downloadFrom, createCluster = savedFrom, savedConf }()
			downloadFrom, createCluster = server.URL, filepath.Join(base, "createcluster.d", "coupond.conf")

			calls := filepath.Join(base, "calls")
			variables := "base='" + base + "' calls='" + calls + "' conf='" + createCluster + "' real='" + machine.dir + "'\n"
			script(t, tools, "apt-get", variables+`echo "$*" >>"$calls"`+"\n"+c.aptGet)
			script(t, tools, "apt-cache", variables+`echo "`+c.offers+`"`)
			t.Setenv("PATH", tools+":"+os.Getenv("PATH"))

			f, _ := newFinder(t, 0)
			found, err := find(t.Context(), f)
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
			if _, err := os.Stat(createCluster); !os.IsNotExist(err) {
				t.Errorf("%s stays behind: %v", createCluster, err)
			}
		})
	}
}

// pathWithout is a PATH with all programs of the present one but the named.
func pathWithout(t *testing.T, name string) string {
	t.Helper()
	dir := newDir(t)
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if entry.Name() != name && entry.Type()&fs.ModeDir == 0 {
				_ = os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(dir, entry.Name())) // the first of a name wins
			}
		}
	}
	return dir
}

func TestProcessesGetPostgreSQLInTurn(t *testing.T) {
	machine, err := realBins()
	must(t, err)
	lookIn(t)
	t.Setenv("LOCALPG_TEST_BIN", machine.dir)
	t.Setenv("PATH", pathWithout(t, "apt-get"))
	fetched := repository(t)

	outcomes := make(chan error)
	for range 3 {
		f, _ := newFinder(t, 0)
		go func() {
			_, err := find(context.WithoutCancel(t.Context()), f)
			outcomes <- err
		}()
	}
	for range 3 {
		must(t, <-outcomes)
	}
	if *fetched != 1 {
		t.Errorf("fetched %d times, want once", *fetched)
	}
}
