//go:build dba

package handbook_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/internal/wait"
)

// update makes TestHandbook write the real output into docs/dba.md: UPDATE_HANDBOOK=1 .ci/run dba
var update = os.Getenv("UPDATE_HANDBOOK") != ""

// TestHandbook runs all commands in the ```console blocks of docs/dba.md, from top to bottom, and
// compares their output.
//
//	$ command      in a shell with the database as default; $NEW is an empty one on another cluster
//	A=# statement  in the psql session A, which stays open; continued on lines that begin with A-#
//	… -- waits     the statement must wait for a lock, and has no output yet
//	A:             the output of the statement that waited
//
// What differs between runs is replaced before the comparison; see normalize.
func TestHandbook(t *testing.T) {
	// Without autovacuum, which may run at any time, the counts are the same in each run.
	c, fresh := newCluster(t), newCluster(t)
	mustRun(t, c.env("postgres", "postgres"), `psql -qc "alter system set autovacuum = off" -c "select pg_reload_conf()"`)
	for _, each := range []*cluster{c, fresh} {
		mustRun(t, each.env("postgres", "postgres"), `psql -qc "create database coupond template template0 encoding 'UTF8'"`)
	}
	r := &runner{
		t:        t,
		env:      append(c.env("postgres", "coupond"), "NEW="+fresh.URL("coupond"), "SERVER="+fmt.Sprintf("127.0.0.1:%d", c.Port())),
		sessions: map[string]*session{},
		admin:    c,
	}
	must(t, os.CopyFS(filepath.Join(workDir(t), "deploy"), os.DirFS("../../deploy")))
	text, err := os.ReadFile("../../docs/dba.md")
	must(t, err)
	written, commands := r.run(strings.Split(string(text), "\n"))
	if commands < 30 {
		t.Errorf("found only %d commands", commands)
	}
	if update {
		must(t, os.WriteFile("../../docs/dba.md", []byte(strings.Join(written, "\n")), 0o600))
	}
}

// runner runs the commands of a document.
type runner struct {
	t        *testing.T
	env      []string
	sessions map[string]*session
	admin    *cluster
}

var (
	shellLine    = regexp.MustCompile(`^\$ (.*)$`)
	sessionLine  = regexp.MustCompile(`^([A-Z])=# (.*)$`)
	continueLine = regexp.MustCompile(`^[A-Z]-# (.*)$`)
	outputLine   = regexp.MustCompile(`^([A-Z]):$`)
)

// isCommand reports whether a line of a console is not output.
func isCommand(line string) bool {
	return shellLine.MatchString(line) || sessionLine.MatchString(line) || outputLine.MatchString(line)
}

// run runs the commands of a document. It returns the document with the real output, and the number
// of commands.
func (r *runner) run(lines []string) (written []string, commands int) {
	inside := false
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		written = append(written, line)
		switch {
		case line == "```console":
			inside = true
			continue
		case line == "```":
			inside = false
			continue
		case !inside:
			continue
		case !isCommand(line):
			r.t.Fatalf("docs/dba.md, line %d: output without a command: %s", i, line)
		}

		commands++
		begin := i
		var output string
		switch {
		case shellLine.MatchString(line):
			command := shellLine.FindStringSubmatch(line)[1]
			for strings.HasSuffix(command, `\`) {
				command += "\n" + lines[i]
				written = append(written, lines[i])
				i++
			}
			output, _ = shell(r.t, r.env, command)
		case sessionLine.MatchString(line):
			match := sessionLine.FindStringSubmatch(line)
			statement := match[2]
			for continueLine.MatchString(lines[i]) {
				statement += "\n" + continueLine.FindStringSubmatch(lines[i])[1]
				written = append(written, lines[i])
				i++
			}
			output = r.session(match[1]).execute(statement)
		default:
			output = r.session(outputLine.FindStringSubmatch(line)[1]).output()
		}

		end := i
		for lines[end] != "```" && !isCommand(lines[end]) {
			end++
		}
		wanted := strings.Join(lines[i:end], "\n")
		output = strings.TrimRight(output, "\n")
		if !update && normalize(output) != normalize(wanted) {
			r.t.Errorf("docs/dba.md, line %d: %s\n--- output in the document\n%s\n--- real output\n%s", begin, line, wanted, output)
		}
		if output != "" {
			written = append(written, strings.Split(output, "\n")...)
			if lines[end] != "```" && strings.HasSuffix(output, ")") { // an empty line after a table
				written = append(written, "")
			}
		}
		i = end
	}
	return written, commands
}

// replacements replace what differs between runs: times, decimals (a rate, a duration), ports,
// process ids, the column widths that follow from them; and the line of a function that raised an
// error.
var replacements = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?(\+00)?`), "<time>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`\b\d+\.\d+\b`), "<decimal>"},
	{regexp.MustCompile(`\bprocess \d+\b`), "process <id>"},
	{regexp.MustCompile(`\bline \d+ at RAISE\b`), "line <number> at RAISE"},
	{regexp.MustCompile(`-{2,}`), "-"},
	{regexp.MustCompile(`[ \t]+`), " "},
	{regexp.MustCompile(`(?m)^ | $`), ""},
	{regexp.MustCompile(`\n+`), "\n"},
}

// normalize makes the output of two runs comparable.
func normalize(text string) string {
	for _, r := range replacements {
		text = r.pattern.ReplaceAllString(text, r.by)
	}
	return strings.TrimSpace(text)
}

// session is a session of psql -At that stays open.
type session struct {
	t      *testing.T
	name   string
	admin  *cluster
	stdin  io.Writer
	stdout *bufio.Reader // and stderr
}

// endOfOutput is printed after the output of each statement.
const endOfOutput = "end of output"

// session returns the session of that name, which is started when it is used first.
func (r *runner) session(name string) *session {
	if s := r.sessions[name]; s != nil {
		return s
	}
	cmd := exec.Command("psql", "--no-psqlrc", "-At")
	for _, variable := range r.env {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			cmd.Path = lookIn(r.t, path, "psql")
		}
	}
	cmd.Env = append(slices.Clone(r.env), "PGAPPNAME="+name)
	input, err := cmd.StdinPipe()
	must(r.t, err)
	reader, writer, err := os.Pipe()
	must(r.t, err)
	cmd.Stdout, cmd.Stderr = writer, writer
	must(r.t, cmd.Start())
	_ = writer.Close()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = reader.Close()
	})
	must(r.t, reader.SetReadDeadline(time.Now().Add(2*timeout)))
	s := &session{r.t, name, r.admin, input, bufio.NewReader(reader)}
	r.sessions[name] = s
	return s
}

// lookIn returns the path of a program in a PATH.
func lookIn(t *testing.T, path, program string) string {
	t.Helper()
	for dir := range strings.SplitSeq(path, ":") {
		if info, err := os.Stat(dir + "/" + program); err == nil && !info.IsDir() {
			return dir + "/" + program
		}
	}
	t.Fatalf("%s is not in %s", program, path)
	return ""
}

// execute executes a statement and returns its output, or "" if it is one that waits.
func (s *session) execute(statement string) string {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.stdin, "%s\n\\warn %s\n", statement, endOfOutput); err != nil {
		s.t.Fatal(err)
	}
	if !strings.HasSuffix(statement, "-- waits") {
		return s.output()
	}
	conn := connect(s.t, s.admin.URL("coupond"))
	wait.For(s.t, "session "+s.name+" to wait for a lock", func() bool {
		return get[int](s.t, conn, `
			select count(*)
			from pg_stat_activity
			where application_name = $1
			  and cardinality(pg_blocking_pids(pid)) > 0`, s.name) > 0
	})
	return ""
}

// output returns the output of the statement that was executed last.
func (s *session) output() string {
	s.t.Helper()
	var all strings.Builder
	for {
		line, err := s.stdout.ReadString('\n')
		if err != nil {
			s.t.Fatalf("session %s: %v after %q", s.name, err, all.String())
		}
		if line == endOfOutput+"\n" {
			return all.String()
		}
		all.WriteString(line)
	}
}
