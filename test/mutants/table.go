package main

import (
	"fmt"
	"strings"
)

const preface = "# Mutants: planted bugs and the tests that catch them\n" + `
Do the tests notice a bug? ` + "`make mutants`" + ` plants each of these bugs on its own. It fails unless the test beside the bug fails by
an assertion, and passes without the bug. The patches are in [test/mutants](../test/mutants); this list is made from them.

| bug | caught by |
|---|---|
`

// table lists the mutants and the tests that catch them, in Markdown.
func table(mutants []mutant) string {
	var text strings.Builder
	text.WriteString(preface)
	for _, m := range mutants {
		fmt.Fprintf(&text, "| [%s](../test/mutants/%s.patch) | `%s` in %s |\n", m.title, m.name, m.test, strings.TrimPrefix(m.pkg, "./"))
	}
	return text.String()
}
