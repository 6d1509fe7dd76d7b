package pgstore

import (
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"scalable-coupon-system/internal/pgtest"
)

// hashText returns what PostgreSQL returns, for every text that PostgreSQL can store.
func TestHashText_equalsPostgreSQL(t *testing.T) {
	t.Parallel()
	conn := pgtest.New(t).Connect(t)
	ctx := t.Context()
	check := func(t rapid.TB, texts []string) {
		rows, err := conn.Query(ctx, `
select pg_catalog.hashtext(w)
from pg_catalog.unnest($1::text[]) with ordinality as w
order by w.ordinality`, texts)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for ; rows.Next(); i++ {
			var want int32
			if err := rows.Scan(&want); err != nil {
				t.Fatal(err)
			}
			if got := int32(hashText(texts[i])); got != want {
				t.Errorf("%q: %d, want %d as in PostgreSQL", texts[i], got, want)
			}
		}
		if rows.Err() != nil || i != len(texts) {
			t.Fatalf("%d of %d rows: %v", i, len(texts), rows.Err())
		}
	}

	// Texts of each length, to cover each remainder of a block, also with bytes beyond ASCII.
	var texts []string
	for n := range 64 {
		text := ""
		for i := range n {
			text += string(rune('a' + i%26))
		}
		texts = append(texts, text, "ß"+text, text+"€", text+"🎟")
	}
	check(t, texts)
	name := rapid.StringN(0, 255, -1).Filter(func(s string) bool {
		for _, r := range s {
			if r == 0 {
				return false
			}
		}
		return utf8.ValidString(s)
	})
	rapid.Check(t, func(rt *rapid.T) { check(rt, rapid.SliceOfN(name, 1, 50).Draw(rt, "names")) })
}
