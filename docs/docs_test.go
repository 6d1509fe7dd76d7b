// Package docs_test checks the documents: links resolve, and the files, functions, tests and
// commands that they name exist.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// root is the repository, relative to this directory.
const root = ".."

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

// documents returns the texts of those files that end in one of the suffixes.
func documents(t *testing.T, existing map[string]bool, suffixes ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for path := range existing {
		if slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(path, suffix) }) {
			found[path] = read(t, path)
		}
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

// first returns the first group of each match.
func first(pattern, text string) []string {
	var groups []string
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		groups = append(groups, match[1])
	}
	return groups
}

func TestLinks(t *testing.T) {
	t.Parallel()
	existing := files(t)
	texts := documents(t, existing, ".md")
	links := 0
	for from, text := range texts {
		for _, link := range first(`\]\(([^()\s]+)\)`, text) {
			target, heading, _ := strings.Cut(link, "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "../../actions/") { // the forge's own pages
				continue
			}
			links++
			path := from
			if target != "" {
				path = filepath.ToSlash(filepath.Join(filepath.Dir(from), target))
			}
			if !existing[path] {
				t.Errorf("%s links to %s, which does not exist", from, link)
			} else if heading != "" && !slices.Contains(headings(texts[path]), heading) {
				t.Errorf("%s links to %s, but the file has no such heading", from, link)
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found", links)
	}
}

// headings returns the anchors that a forge generates for the headings of a document.
func headings(text string) []string {
	anchors := first(`(?m)^#+ +(.+)$`, text)
	for i, heading := range anchors {
		anchors[i] = strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			default:
				return -1
			}
		}, heading)
	}
	return anchors
}

// A document or a picture may name a file by its full path or by the end of it.
func TestNames(t *testing.T) {
	t.Parallel()
	existing := files(t)
	names := map[string]bool{} // of files and the ends of their paths, tests, targets of make and sections of .ci/run
	for path := range existing {
		for names[path] = true; strings.Contains(path, "/"); names[path] = true {
			_, path, _ = strings.Cut(path, "/")
		}
	}
	for _, text := range documents(t, existing, "_test.go") {
		for _, test := range first(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`, text) {
			names[test] = true
		}
	}
	for _, target := range first(`(?m)^([a-z][\w-]*):`, read(t, "Makefile")) {
		names["make "+target] = true
	}
	for _, section := range first(`(?m)^([a-z]\w*)\(\) \{`, read(t, ".ci/run")) {
		names[".ci/run "+section] = true
	}

	inText := []string{
		`\b((?:Test|Fuzz|Benchmark)[A-Z]\w+)`,
		"(?:`|\\$ )(make [a-z][a-z-]*|\\.ci/run [a-z]\\w*)", `(?m)^(make [a-z-]+) +#`,
		"`([\\w./-]+\\.(?:go|sql|yaml|yml|awk))`",
	}
	inPicture := []string{`\b([\w/]+\.(?:go|sql))\b`}
	named := map[string]int{}
	for from, text := range documents(t, existing, ".md", "docs/pictures/architecture.svg", "docs/pictures/way-of-a-claim.svg") {
		patterns, kind := inText, filepath.Ext(from)
		if kind == ".svg" {
			patterns = inPicture
		}
		for _, pattern := range patterns {
			for _, name := range first(pattern, text) {
				named[kind]++
				if !names[name] {
					t.Errorf("%s names %s, which does not exist", from, name)
				}
			}
		}
	}
	if named[".md"] < 50 || named[".svg"] < 20 {
		t.Errorf("only %v names were found", named)
	}
}

// docs/architecture.md links to a file and names functions of it.
func TestArchitecture_functions(t *testing.T) {
	t.Parallel()
	cell := regexp.MustCompile("\\]\\(\\.\\./([\\w/.]+\\.go)\\)((?:,? `[\\w.]+`)+)")
	checked := 0
	for _, match := range cell.FindAllStringSubmatch(read(t, "docs/architecture.md"), -1) {
		source := read(t, match[1])
		for _, name := range first("`([\\w.]+)`", match[2]) {
			checked++
			last := name[strings.LastIndex(name, ".")+1:]
			if !regexp.MustCompile(`(?m)^(?:func (?:\([^)]*\) )?|var |\t)` + last + `\b`).MatchString(source) {
				t.Errorf("docs/architecture.md: %s has no %s", match[1], name)
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d functions were found", checked)
	}
}

// ADRs are numbered without gaps and listed in the index.
func TestADRs(t *testing.T) {
	t.Parallel()
	index := read(t, "docs/adr/README.md")
	paths, err := filepath.Glob("adr/[0-9]*.md")
	if err != nil || len(paths) < 14 {
		t.Fatalf("only %d ADRs were found: %v", len(paths), err)
	}
	for i, path := range paths {
		name, number := filepath.Base(path), fmt.Sprintf("%04d", i+1)
		if !strings.HasPrefix(name, number+"-") || !strings.HasPrefix(read(t, "docs/"+path), "# "+number+" ") {
			t.Errorf("%s: its name or its title does not begin with %s, the next number", name, number)
		}
		if !strings.Contains(index, "["+number+"]("+name+")") {
			t.Errorf("docs/adr/README.md does not list %s", name)
		}
	}
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
	if shown, _, _ := strings.Cut(block, "\n```\n"); shown != function[begin:] {
		t.Errorf("README.md shows\n%s\n%s has\n%s", shown, path, function[begin:])
	}
}
