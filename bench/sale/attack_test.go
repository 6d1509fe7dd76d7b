package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// attack runs the tool as from a shell.
func attack(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs, nil)
	return code, out.String(), errs.String()
}

// Sales of a service that may be slow, busy or cut off, but never wrong.
func TestExact(t *testing.T) {
	busy := func(code string, done bool) func(*fake, http.ResponseWriter, int, *fakeCoupon, string) bool {
		return func(_ *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
			if n%5 != 0 {
				return false
			}
			if done {
				c.claim(user)
			}
			fail(w, 503, code)
			return true
		}
	}
	tests := map[string]struct {
		fake *fake
		args []string
		says []string
	}{
		"all goes well":        {&fake{}, nil, []string{"201 claimed\n", "✓ exactly 20 won", "✓ all 300 users were told"}},
		"at a rate":            {&fake{}, []string{"-rate", "3000"}, []string{"3,000 a second\n"}},
		"more stock than asks": {&fake{}, []string{"-stock", "1000"}, []string{"✓ exactly 300 won"}},
		"one user":             {&fake{}, []string{"-users", "1", "-stock", "1", "-repeats", "100"}, []string{"1 user (100 % twice) for 1 coupon ·", "✓ exactly 1 won"}},
		"overloaded":           {&fake{misclaim: busy("OVERLOADED", false)}, nil, []string{"503 asked again: ", "OVERLOADED"}},
		"outcome unknown, carried out": {
			&fake{misclaim: busy("OUTCOME_UNKNOWN", true)}, nil,
			[]string{"OUTCOME_UNKNOWN", "left without knowing at first: ", "0 never found out"},
		},
		"outcome unknown, not carried out": {
			&fake{misclaim: busy("OUTCOME_UNKNOWN", false)}, nil,
			[]string{"OUTCOME_UNKNOWN", "left without knowing at first: ", " 0 had won"},
		},
		"cut off after the claim": {
			&fake{misclaim: func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
				if n%5 == 0 {
					c.claim(user)
					cut()
				}
				return false
			}}, nil, []string{"no answer: ", "CUT", "left without knowing at first: "},
		},
		"silent after the claim": {
			&fake{misclaim: func(f *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
				if n != 5 {
					return false
				}
				code := c.claim(user)
				f.unlocked(time.Second)
				answer(w, code)
				return true
			}}, []string{"-timeout", "300ms"}, []string{"TIMED_OUT", " left without knowing at first: ", " 0 never found out"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-users", "300", "-stock", "20", "-connections", "8", "-repeats", "10"}, test.args...)
			code, out, errs := attack(t, append(args, test.fake.start(t))...)
			if code != exact || errs != "" || !strings.HasSuffix(out, "\n  EXACT\n") {
				t.Errorf("exit %d, stderr %q, stdout\n%s", code, errs, out)
			}
			for _, s := range test.says {
				if !strings.Contains(out, s) {
					t.Errorf("does not say %q:\n%s", s, out)
				}
			}
		})
	}
}

// Every way of being wrong has to be told, by the promise it breaks.
func TestNotExact(t *testing.T) {
	claims := func(misclaim func(f *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool) *fake {
		return &fake{misclaim: misclaim}
	}
	reports := func(misreport func(r *fakeReport)) *fake { return &fake{misreport: misreport} }
	tests := map[string]struct {
		fake *fake
		args []string
		says []string
	}{
		"oversells": {claims(func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, _ string) bool {
			if n == 1 {
				c.amount++
			}
			return false
		}), nil, []string{"✗ exactly 20 won\n      21 did", "✗ the service reports the same\n      amount is 21"}},
		"undersells": {claims(func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, _ string) bool {
			if n == 1 {
				c.amount--
			}
			return false
		}), nil, []string{"✗ exactly 20 won\n      19 did"}},
		"gives one user two": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, user string) bool {
			if slices.Contains(c.claimedBy, user) && len(c.claimedBy) < c.amount {
				c.claimedBy = append(c.claimedBy, user)
				answer(w, "")
				return true
			}
			return false
		}), []string{"-users", "15", "-repeats", "100"}, []string{"✗ nobody won twice\n      user-00000"}},
		"tells one user twice": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, user string) bool {
			if slices.Contains(c.claimedBy, user) {
				answer(w, "")
				return true
			}
			return false
		}), []string{"-repeats", "100"}, []string{"✗ nobody won twice\n      user-00000"}},
		"forgets a winner": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 3 {
				answer(w, "")
			}
			return n == 3
		}), nil, []string{"was told that he has it, and is not in claimed_by", "✗ exactly 20 won\n      21 did"}},
		"looks at the stock first": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, _ string) bool {
			if len(c.claimedBy) == c.amount {
				answer(w, "OUT_OF_STOCK")
				return true
			}
			return false
		}), []string{"-repeats", "100"}, []string{"✗ no answer contradicts another\n      user-00000", "was told both that it is sold out and that he has it"}},
		"says already to a stranger": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 200 {
				answer(w, "ALREADY_CLAIMED")
			}
			return n == 200
		}), []string{"-repeats", "0"}, []string{"was told 409 though no claim of his had won"}},
		"sold out too early": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 1 {
				answer(w, "OUT_OF_STOCK")
			}
			return n == 1
		}), []string{"-repeats", "0", "-connections", "1"}, []string{"won with a claim sent after somebody was told that it is sold out"}},
		"fails inside": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				fail(w, 500, "INTERNAL")
			}
			return n == 7
		}), nil, []string{"anything else: 1 500 INTERNAL", "was answered 500 INTERNAL"}},
		"fails always": {claims(func(_ *fake, w http.ResponseWriter, _ int, _ *fakeCoupon, _ string) bool {
			fail(w, 500, "INTERNAL")
			return true
		}), []string{"-users", "5"}, []string{"✗ exactly 5 won\n      0 did", "✗ all 5 users were told\n      user-0000001 never had a clear answer", "and 2 more"}},
		"loses the coupon": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				fail(w, 404, "COUPON_NOT_FOUND")
			}
			return n == 7
		}), nil, []string{"anything else: 1 404 COUPON_NOT_FOUND", "was answered 404 COUPON_NOT_FOUND"}},
		"talks nonsense": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				w.WriteHeader(400)
				_, _ = w.Write([]byte("<html>"))
			}
			return n == 7
		}), nil, []string{"1 no answer (MALFORMED)", `fault: malformed answer: a 400 whose body is no error of the contract: "<html>"`}},
		"is slow": {claims(func(f *fake, _ http.ResponseWriter, _ int, _ *fakeCoupon, user string) bool {
			if strings.HasSuffix(user, "7") {
				f.unlocked(time.Second)
			}
			return false
		}), []string{"-users", "20", "-timeout", "300ms", "-duration", "2s"}, []string{"✗ all 20 users were told\n", "user-0000007 never had a clear answer", "TIMED_OUT"}},
		"is busy for ever": {claims(func(_ *fake, w http.ResponseWriter, _ int, _ *fakeCoupon, user string) bool {
			if strings.HasSuffix(user, "7") {
				fail(w, 503, "OVERLOADED")
				return true
			}
			return false
		}), []string{"-users", "20", "-duration", "1s"}, []string{"✗ all 20 users were told\n      user-0000007 never had a clear answer", "  stopped after 1s (-duration)\n"}},
		"cuts every connection": {claims(func(*fake, http.ResponseWriter, int, *fakeCoupon, string) bool {
			cut()
			return true
		}), []string{"-users", "5", "-duration", "1s"}, []string{"✗ all 5 users were told", "CUT"}},
		"reports one too few":   {reports(func(r *fakeReport) { r.ClaimedBy = r.ClaimedBy[1:] }), nil, []string{"is not in claimed_by", "remaining_amount is 0 and not 1"}},
		"reports a stranger":    {reports(func(r *fakeReport) { r.ClaimedBy[3] = "mallory" }), nil, []string{`claimed_by has "mallory", who never asked`}},
		"reports one twice":     {reports(func(r *fakeReport) { r.ClaimedBy[3] = r.ClaimedBy[4] }), nil, []string{"stands in claimed_by twice"}},
		"reports another stock": {reports(func(r *fakeReport) { r.Remaining = 1 }), nil, []string{"remaining_amount is 1 and not 0, with 20 in claimed_by"}},
		"reports in disorder": {
			reports(func(r *fakeReport) { slices.Reverse(r.ClaimedBy) }),
			[]string{"-connections", "1"}, []string{"but had won before one further up asked"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-users", "300", "-stock", "20", "-connections", "8", "-repeats", "10"}, test.args...)
			code, out, errs := attack(t, append(args, test.fake.start(t))...)
			if code != notExact || errs != "" || !strings.HasSuffix(out, "\n  NOT EXACT\n") {
				t.Errorf("exit %d, stderr %q, stdout\n%s", code, errs, out)
			}
			for _, s := range test.says {
				if !strings.Contains(out, s) {
					t.Errorf("does not say %q:\n%s", s, out)
				}
			}
		})
	}
}

// The text of a good sale is stable but for its numbers: the README shows it.
func TestTable(t *testing.T) {
	_, out, _ := attack(t, "-users", "300", "-stock", "20", "-connections", "8", (&fake{}).start(t))
	_, table, _ := strings.Cut(out, "\n\n")
	table = regexp.MustCompile(`[▁▂▃▄▅▆▇█]+`).ReplaceAllString(table, "▅")
	table = regexp.MustCompile(`attack-[0-9.-]+`).ReplaceAllString(table, "attack-N")
	table = regexp.MustCompile(` *[0-9][0-9,.]* (ms|s)\b`).ReplaceAllString(table, " TIME")
	table = regexp.MustCompile(`: [0-9,]+ a second`).ReplaceAllString(table, ": N a second")
	const want = `  300 users (5 % twice) for 20 coupons · 8 connections · all at once
  coupon attack-N · seed 1

          20  201 claimed
           K  409 already claimed
           K  400 sold out
           0  503 asked again
         315  claims answered in TIME: N a second  ▅

  latency  p50 TIME   p99 TIME   p99.9 TIME   longest TIME

  ✓ exactly 20 won
  ✓ nobody won twice
  ✓ all 300 users were told
  ✓ no answer contradicts another
  ✓ the service reports the same

  EXACT
`
	table = regexp.MustCompile(`(?m)^ *[0-9]+(  4\d\d )`).ReplaceAllString(table, "           K$1")
	if table != want {
		t.Errorf("got\n%s\nwant\n%s", table, want)
	}
}

// Ctrl-C ends the sale; the verdict on what there was is still told.
func TestStoppedByHand(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	url := (&fake{misclaim: func(_ *fake, _ http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
		if n == 100 {
			stop()
		}
		return false
	}}).start(t)
	var out, errs bytes.Buffer
	code := run(ctx, []string{"-users", "10000", "-stock", "20", "-connections", "4", url}, &out, &errs, nil)
	for _, s := range []string{"  stopped by hand\n", "✓ exactly 20 won", "✗ all 10,000 users were told", "✓ no answer contradicts another", "✓ the service reports the same"} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("does not say %q:\n%s", s, out.String())
		}
	}
	if code != notExact || errs.Len() > 0 {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}

func TestTheSameSeedIsTheSameSale(t *testing.T) {
	winners := func(seed string) []string {
		f := &fake{}
		if code, out, _ := attack(t, "-users", "300", "-stock", "20", "-connections", "1", "-coupon", "sale", "-seed", seed, f.start(t)); code != exact {
			t.Fatal(out)
		}
		return f.coupons["sale"].claimedBy
	}
	first := winners("7")
	if !slices.Equal(first, winners("7")) {
		t.Error("the same seed had other winners")
	}
	if slices.Equal(first, winners("8")) {
		t.Error("another seed had the same winners")
	}
}

func TestNoVerdict(t *testing.T) {
	t.Run("nobody there", func(t *testing.T) {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close()
		code, _, errs := attack(t, listener.Addr().String())
		if code != notExact || !strings.Contains(errs, "no coupon, no sale: ") || !strings.Contains(errs, "refused") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("no coupon can be made", func(t *testing.T) {
		code, _, errs := attack(t, (&fake{refuse: "POST"}).start(t))
		if code != notExact || !strings.Contains(errs, "503") || !strings.Contains(errs, "UNAVAILABLE") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("the coupon cannot be read", func(t *testing.T) {
		code, out, errs := attack(t, "-users", "30", "-stock", "3", (&fake{refuse: "GET"}).start(t))
		if code != notExact || !strings.Contains(errs, "no verdict, the coupon cannot be read: ") || strings.Contains(out, "EXACT") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
		if !strings.Contains(out, "201 claimed") {
			t.Errorf("what was answered is not told:\n%s", out)
		}
	})
	t.Run("the coupon is there already", func(t *testing.T) {
		url := (&fake{}).start(t)
		if code, out, _ := attack(t, "-users", "3", "-coupon", "sale 🎟 / 1", url); code != exact {
			t.Fatal(out)
		}
		code, _, errs := attack(t, "-users", "3", "-coupon", "sale 🎟 / 1", url)
		if code != misused || !strings.Contains(errs, "give another -coupon") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("the picture cannot be written", func(t *testing.T) {
		code, out, errs := attack(t, "-users", "3", "-plot", filepath.Join(t.TempDir(), "none", "sale.svg"), (&fake{}).start(t))
		if code != notExact || !strings.Contains(errs, "no picture: ") || !strings.Contains(out, "EXACT") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
	})
}

// Load must never go to somebody else by mistake: nothing may be sent before the address is judged.
func TestOnlyThisMachine(t *testing.T) {
	for _, target := range []string{"http://192.0.2.1:8080", "192.0.2.1", "http://[2001:db8::1]:8080", "http://0.0.0.0:8080", "172.17.0.2:8080"} {
		code, _, errs := attack(t, target)
		if code != misused || !strings.Contains(errs, "is not this machine") || !strings.Contains(errs, "-allow-remote") {
			t.Errorf("%s: exit %d: %s", target, code, errs)
		}
	}
}

func TestMisused(t *testing.T) {
	for _, test := range []struct{ args, says string }{
		{"-users 0", "-users 0: from 1 to 10000000"},
		{"-stock 2147483648", "-stock 2147483648: from 1 to 2147483647"},
		{"-connections 0", "-connections 0: from 1 to 20000"},
		{"-rate -1", "-rate -1: from 0 (all at once)"},
		{"-rate NaN", "-rate NaN: from 0 (all at once)"},
		{"-rate 100", "-rate 100: 52,500 requests then take 8m45s, and -duration is 2m0s"},
		{"-repeats 101", "-repeats 101: from 0 to 100 percent"},
		{"-seed -1", `invalid value "-1" for flag -seed`},
		{"-coupon \u00a0", "-coupon \"\\u00a0\": 1 to 255 characters"},
		{"-coupon " + strings.Repeat("é", 256), "1 to 255 characters"},
		{"-duration 0s", "-duration 0s: more than 0"},
		{"-timeout -1s", "-timeout -1s: more than 0"},
		{"-plot sale.png", "-plot sale.png: a name that ends in .svg"},
		{"-wat", "flag provided but not defined: -wat"},
		{"https://127.0.0.1", "by http"},
		{"http://127.0.0.1/api", "want a url like http://127.0.0.1:8080"},
		{"http://user@127.0.0.1", "want a url like"},
		{"127.0.0.1 127.0.0.2", "one url at most"},
		{"-users 0 -stock 0", "-users 0: from 1 to 10000000\n-stock 0: "},
	} {
		code, out, errs := attack(t, strings.Split(test.args, " ")...)
		if code != misused || out != "" || !strings.Contains(errs, test.says) || !strings.HasSuffix(errs, "-help shows what is allowed\n") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", test.args, code, out, errs)
		}
	}
}

func TestHelp(t *testing.T) {
	code, out, errs := attack(t, "-help")
	if code != exact || errs != "" {
		t.Errorf("exit %d: %s", code, errs)
	}
	for _, f := range []string{"users", "stock", "connections", "rate", "repeats", "seed", "coupon", "duration", "timeout", "plot", "no-color", "allow-remote"} {
		if !strings.Contains(out, "\n  -"+f) {
			t.Errorf("-%s is not in\n%s", f, out)
		}
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "127.0.0.1:8080",
		"http://127.0.0.1:9000/":  "127.0.0.1:9000",
		"127.0.0.2:9000":          "127.0.0.2:9000",
		"http://[::1]:9000":       "[::1]:9000",
		"localhost":               "localhost:80",
		"-allow-remote 192.0.2.1": "192.0.2.1:80",
	} {
		o, err := parse(t.Context(), strings.Fields(in), time.Date(2026, 11, 23, 20, 15, 0, 0, time.UTC), os.Stderr)
		if err != nil || o.address != want {
			t.Errorf("%q: %s, %v", in, o.address, err)
		}
		if o.coupon != "attack-20261123-201500.000" {
			t.Errorf("coupon %q", o.coupon)
		}
	}
}
