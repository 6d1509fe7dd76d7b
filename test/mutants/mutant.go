package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// mutant is one bug to plant.
type mutant struct {
	name  string // of its file: 001-row-lock-dropped
	title string
	pkg   string // ./db
	test  string // TestIsolation, or TestClaimCut/after the commit
	diff  string
}

// header matches what precedes the diff of a patch.
var header = regexp.MustCompile(`\ATitle: (.+)\nTest: (\./\S+) (Test[^\n]*)\n\n`)

// readMutants reads the patches in dir with names that match wanted, in the order of the names.
func readMutants(dir string, wanted *regexp.Regexp) ([]mutant, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	var mutants []mutant
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		if !wanted.MatchString(name) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		m, err := parseMutant(name, string(text))
		if err != nil {
			return nil, err
		}
		mutants = append(mutants, m)
	}
	if len(mutants) == 0 {
		return nil, fmt.Errorf("no mutant in %s matches %q (run it at the top of the repository)", dir, wanted)
	}
	return mutants, nil
}

func parseMutant(name, text string) (mutant, error) {
	match := header.FindStringSubmatch(text)
	if match == nil {
		return mutant{}, fmt.Errorf("%s.patch: does not begin with the lines Title: and Test: and an empty line", name)
	}
	return mutant{name: name, title: match[1], pkg: match[2], test: match[3], diff: text[len(match[0]):]}, nil
}

// function returns the name of the test's function, without subtests.
func (m mutant) function() string {
	function, _, _ := strings.Cut(m.test, "/")
	return function
}

// expression returns the value of -run that selects exactly this test.
func (m mutant) expression() string {
	var parts []string
	for part := range strings.SplitSeq(m.test, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(strings.ReplaceAll(part, " ", "_"))+"$")
	}
	return strings.Join(parts, "/")
}
