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

// readMutants reads the patches in dir whose names match only, in the order of their names.
func readMutants(dir string, only *regexp.Regexp) (mutants []mutant, err error) {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.patch")) // fails only for a malformed pattern
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		if !only.MatchString(name) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		match := header.FindStringSubmatch(string(text))
		if match == nil {
			return nil, fmt.Errorf("%s: does not begin with the lines Title: and Test: and an empty line", path)
		}
		mutants = append(mutants, mutant{name: name, title: match[1], pkg: match[2], test: match[3], diff: string(text[len(match[0]):])})
	}
	if len(mutants) == 0 {
		return nil, fmt.Errorf("no mutant in %s matches %v (run it at the top of the repository)", dir, only)
	}
	return mutants, nil
}

// function returns the name of the test's function, without subtests.
func (m mutant) function() string {
	function, _, _ := strings.Cut(m.test, "/")
	return function
}

// nameInOutput returns the name of the test as the package testing prints it.
func (m mutant) nameInOutput() string { return strings.ReplaceAll(m.test, " ", "_") }

// expression returns the value of -run that selects exactly this test.
func (m mutant) expression() string {
	return "^" + strings.ReplaceAll(regexp.QuoteMeta(m.nameInOutput()), "/", "$/^") + "$"
}
