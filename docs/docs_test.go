// Package docs_test checks the documents: links resolve, and the files, tests, settings and codes
// that they name exist.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// root is the repository, relative to this directory.
const root = ".."

// documents returns the Markdown files of the repository by their path from its root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for path := range files(t) {
		if strings.HasSuffix(path, ".md") {
			found[path] = read(t, path)
		}
	}
	for _, wanted := range []string{"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/guarantees.md", "docs/api.md"} {
		if found[wanted] == "" {
			t.Fatalf("%s is missing", wanted)
		}
	}
	return found
}

// files returns the files and directories of the repository by their path from its root. Hidden
// ones are left out, except .github and .ci.
func files(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		if err == nil && entry.IsDir() && strings.HasPrefix(name, ".") && !slices.Contains([]string{".", ".ci", ".github"}, name) {
			return fs.SkipDir
		}
		found[path] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	existing := files(t)
	texts := documents(t)
	links := 0
	for from, text := range texts {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "../../actions/") { // the forge's own pages
				continue
			}
			links++
			path := from
			if target != "" {
				path = filepath.ToSlash(filepath.Join(filepath.Dir(from), target))
			}
			if !existing[path] {
				t.Errorf("%s links to %s, which does not exist", from, match[1])
				continue
			}
			if heading != "" && !slices.Contains(headings(texts[path]), heading) {
				t.Errorf("%s links to %s, but the file has no such heading", from, match[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found", links)
	}
}

// headings returns the anchors that a forge generates for the headings of a document.
func headings(text string) []string {
	var anchors []string
	for _, match := range regexp.MustCompile(`(?m)^#+ +(.+)$`).FindAllStringSubmatch(text, -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			default:
				return -1
			}
		}, match[1])
		anchors = append(anchors, anchor)
	}
	return anchors
}

// A document may name a file by its full path or by the end of it.
func TestNames(t *testing.T) {
	t.Parallel()
	existing := files(t)
	tests := map[string]bool{}
	definition := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	for path := range existing {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, match := range definition.FindAllStringSubmatch(read(t, path), -1) {
			tests[match[1]] = true
		}
	}

	commands := map[string]bool{} // targets of make and sections of .ci/run
	for _, match := range regexp.MustCompile(`(?m)^([a-z][\w-]*):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		commands["make "+match[1]] = true
	}
	for _, match := range regexp.MustCompile(`(?m)^([a-z]\w*)\(\) \{`).FindAllStringSubmatch(read(t, ".ci/run"), -1) {
		commands[".ci/run "+match[1]] = true
	}

	testName := regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w+`)
	command := regexp.MustCompile("(?:`|\\$ )(make [a-z-]+|\\.ci/run [a-z]\\w*)")
	fileName := regexp.MustCompile("`([\\w./-]+\\.(?:go|sql|yaml|yml|awk))`")
	named := 0
	for from, text := range documents(t) {
		for _, name := range testName.FindAllString(text, -1) {
			named++
			if !tests[name] {
				t.Errorf("%s names the test %s, which does not exist", from, name)
			}
		}
		for _, match := range command.FindAllStringSubmatch(text, -1) {
			named++
			if !commands[match[1]] && !strings.HasPrefix(match[1], "make --") {
				t.Errorf("%s names the command %s, which does not exist", from, match[1])
			}
		}
		for _, match := range fileName.FindAllStringSubmatch(text, -1) {
			named++
			if !slices.ContainsFunc(keys(existing), func(path string) bool {
				return path == match[1] || strings.HasSuffix(path, "/"+match[1])
			}) {
				t.Errorf("%s names the file %s, which does not exist", from, match[1])
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d names were found", named)
	}
}

func keys(set map[string]bool) []string {
	list := make([]string, 0, len(set))
	for key := range set {
		list = append(list, key)
	}
	return list
}

// docs/architecture.md links to a file and names functions of it.
func TestArchitecture_functions(t *testing.T) {
	t.Parallel()
	cell := regexp.MustCompile("\\]\\(\\.\\./([\\w/.]+\\.go)\\)((?:,? `[\\w.]+`)+)")
	checked := 0
	for _, match := range cell.FindAllStringSubmatch(read(t, "docs/architecture.md"), -1) {
		source := read(t, match[1])
		for _, name := range regexp.MustCompile("`([\\w.]+)`").FindAllStringSubmatch(match[2], -1) {
			checked++
			last := name[1][strings.LastIndex(name[1], ".")+1:]
			defined := regexp.MustCompile(`(?m)^(?:func (?:\([^)]*\) )?|var |\t)` + last + `\b`)
			if !defined.MatchString(source) {
				t.Errorf("docs/architecture.md: %s has no %s", match[1], name[1])
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d functions were found", checked)
	}
}

func TestPictures(t *testing.T) {
	t.Parallel()
	existing := keys(files(t))
	named := 0
	fileName := regexp.MustCompile(`[\w/]+\.(?:go|sql)\b`)
	for _, picture := range []string{"docs/pictures/architecture.svg", "docs/pictures/way-of-a-claim.svg"} {
		for _, name := range fileName.FindAllString(read(t, picture), -1) {
			named++
			if !slices.ContainsFunc(existing, func(path string) bool { return path == name || strings.HasSuffix(path, "/"+name) }) {
				t.Errorf("%s names %s, which does not exist", picture, name)
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d names were found", named)
	}
}

// ADRs are numbered without gaps and listed in the index.
func TestADRs(t *testing.T) {
	t.Parallel()
	index := read(t, "docs/adr/README.md")
	paths, err := filepath.Glob("adr/[0-9]*.md")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	for i, path := range paths {
		name := filepath.Base(path)
		number := fmt.Sprintf("%04d", i+1)
		if !strings.HasPrefix(name, number+"-") {
			t.Errorf("%s: the next number is %s", name, number)
		}
		if !strings.Contains(index, "["+number+"]("+name+")") {
			t.Errorf("docs/adr/README.md does not list %s", name)
		}
		if !strings.HasPrefix(read(t, "docs/adr/"+name), "# "+number+" ") {
			t.Errorf("%s does not start with its number", name)
		}
	}
	if len(paths) < 14 {
		t.Errorf("only %d ADRs were found", len(paths))
	}
}

// The table of settings in docs/operations.md equals the output of coupond serve --help.
func TestSettings(t *testing.T) {
	t.Parallel()
	command := exec.CommandContext(t.Context(), "go", "run", root+"/cmd/coupond", "serve", "--help")
	command.Env = append(os.Environ(), "COLUMNS=1000") // a line for each setting
	help, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`(?m)^ +--[a-z-]+=(?:[A-Z]+|"?([^ "]+)"?) +([A-Z_]+): (.+)\. Must be (.+)\.$`)
	var inHelp []string
	for _, match := range setting.FindAllStringSubmatch(string(help), -1) {
		inHelp = append(inHelp, strings.Join([]string{match[2], match[1], match[3], match[4]}, " | "))
	}

	row := regexp.MustCompile("(?m)^\\| (`[A-Z_]+` \\| .*) \\|$")
	var inTable []string
	for _, match := range row.FindAllStringSubmatch(read(t, "docs/operations.md"), -1) {
		inTable = append(inTable, strings.ReplaceAll(strings.ReplaceAll(match[1], "`", ""), "| |", "|  |"))
	}

	if len(inHelp) == 0 || !slices.Equal(unquoted(inHelp), unquoted(inTable)) {
		t.Errorf("coupond serve --help:\n%s\ndocs/operations.md:\n%s", strings.Join(inHelp, "\n"), strings.Join(inTable, "\n"))
	}
}

// unquoted removes the quotes that --help puts around code; Markdown has backquotes instead.
func unquoted(lines []string) []string {
	plain := make([]string, len(lines))
	for i, line := range lines {
		plain[i] = strings.ReplaceAll(line, "'", "")
	}
	return plain
}

// The README shows the function as it is, without the comments before and after it.
func TestREADME_showsTheFunction(t *testing.T) {
	t.Parallel()
	const path = "db/functions/claim_coupon.sql"
	function, _, found := strings.Cut(read(t, path), "\n\ncomment on function ")
	begin := strings.Index(function, "create or replace function ")
	if !found || begin < 0 {
		t.Fatalf("%s has no function with a comment", path)
	}
	_, block, found := strings.Cut(read(t, "README.md"), "<!-- "+path+" -->\n```sql\n")
	if !found {
		t.Fatalf("README.md has no block %s", path)
	}
	shown, _, _ := strings.Cut(block, "\n```\n")
	if shown != function[begin:] {
		t.Errorf("README.md shows\n%s\n%s has\n%s", shown, path, function[begin:])
	}
}
