package api

import (
	"testing"
	"unicode/utf8"
)

// Go and the functions in PostgreSQL agree for every code point.
func TestNotWhiteSpace_matchesSQL(t *testing.T) {
	inSQL := func(r rune) bool {
		switch {
		case 0x9 <= r && r <= 0xd, r == 0x20, r == 0x85, r == 0xa0, r == 0x1680,
			0x2000 <= r && r <= 0x200a, r == 0x2028, r == 0x2029, r == 0x202f, r == 0x205f, r == 0x3000:
			return true
		}
		return false
	}
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if notWhiteSpace(r) == inSQL(r) {
			t.Errorf("%U: white space is %v in Go, %v in SQL", r, !notWhiteSpace(r), inSQL(r))
		}
	}
}
