package api

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// The white space of names is the list that the functions in PostgreSQL have,
// code point by code point.
func TestWhiteSpaceIsTheListInSQL(t *testing.T) {
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
			t.Errorf("%U: white space is %v here, %v in SQL", r, !notWhiteSpace(r), inSQL(r))
		}
	}
}

// Each character by itself is a name, unless it is NUL or white space.
func TestEveryCharacterIsLegal(t *testing.T) {
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		legal := r != 0 && notWhiteSpace(r)
		if err := checkName("it", string(r)); (err == nil) != legal {
			t.Errorf("%U: %v", r, err)
		}
		if err := checkName("it", "x"+string(r)); (err == nil) != (r != 0) {
			t.Errorf("x and %U: %v", r, err)
		}
	}
}

func TestNameLength(t *testing.T) {
	for _, character := range []string{"a", "é", "€", "🎟"} {
		if err := checkName("it", strings.Repeat(character, 255)); err != nil {
			t.Errorf("255 %s: %v", character, err)
		}
		if err := checkName("it", strings.Repeat(character, 256)); err == nil {
			t.Errorf("256 %s pass", character)
		}
	}
}
