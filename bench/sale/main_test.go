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

// runCommand runs the command with these arguments.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs, nil)
	return code, out.String(), errs.String()
}

// A service may be slow, overloaded or disconnected, and the sale passes.
func TestRun_pass(t *testing.T) {
	every5th := func(code string, committed bool) func(*fake, http.ResponseWriter, int, *fakeCoupon, string) bool {
		return func(_ *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
			if n%5 != 0 {
				return false
			}
			if committed {
				c.claim(user)
			}
			fail(w, 503, code)
			return true
		}
	}
	tests := map[string]struct {
		fake *fake
		args []string
		want []string
	}{
		"no faults":             {&fake{}, nil, []string{"201 claimed\n", "✓ exactly 20 users won", "✓ every user got a definite answer"}},
		"at a rate":             {&fake{}, []string{"--rate", "3000"}, []string{"3,000 per second\n"}},
		"more stock than users": {&fake{}, []string{"--stock", "1000"}, []string{"✓ exactly 300 users won"}},
		"one user":              {&fake{}, []string{"--users", "1", "--stock", "1", "--repeats", "100"}, []string{"1 user (100 % twice) for 1 coupon ·", "✓ exactly 1 user won"}},
		"overloaded":            {&fake{onClaim: every5th("OVERLOADED", false)}, nil, []string{"503 retried: ", "OVERLOADED"}},
		"outcome unknown, committed": {
			&fake{onClaim: every5th("OUTCOME_UNKNOWN", true)}, nil,
			[]string{"OUTCOME_UNKNOWN", " got an ambiguous answer: ", " 0 are unresolved"},
		},
		"outcome unknown, not committed": {
			&fake{onClaim: every5th("OUTCOME_UNKNOWN", false)}, nil,
			[]string{"OUTCOME_UNKNOWN", " got an ambiguous answer: ", " 0 had won"},
		},
		"connection cut after the claim": {
			&fake{onClaim: func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
				if n%5 == 0 {
					c.claim(user)
					cut()
				}
				return false
			}}, nil, []string{"no answer: ", "CUT", " got an ambiguous answer: "},
		},
		"time-out after the claim": {
			&fake{onClaim: func(f *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool {
				if n != 5 {
					return false
				}
				code := c.claim(user)
				f.sleepUnlocked(time.Second)
				answer(w, code)
				return true
			}}, []string{"--timeout", "300ms"}, []string{"TIMED_OUT", " got an ambiguous answer: ", " 0 are unresolved"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--users", "300", "--stock", "20", "--connections", "8", "--repeats", "10"}, test.args...)
			code, out, errs := runCommand(t, append(args, test.fake.start(t))...)
			if code != exitPass || errs != "" || !strings.HasSuffix(out, "\n  PASS\n") {
				t.Errorf("exit %d, stderr %q, stdout\n%s", code, errs, out)
			}
			for _, s := range test.want {
				if !strings.Contains(out, s) {
					t.Errorf("the output lacks %q:\n%s", s, out)
				}
			}
		})
	}
}

// Each fault of the service is reported as a violation of a guarantee.
func TestRun_fail(t *testing.T) {
	claims := func(onClaim func(f *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool) *fake {
		return &fake{onClaim: onClaim}
	}
	reports := func(onReport func(r *fakeReport)) *fake { return &fake{onReport: onReport} }
	tests := map[string]struct {
		fake *fake
		args []string
		want []string
	}{
		"oversells": {claims(func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, _ string) bool {
			if n == 1 {
				c.amount++
			}
			return false
		}), nil, []string{"✗ exactly 20 users won\n      21 won", "✗ the service reports the same winners\n      amount is 21, want 20"}},
		"undersells": {claims(func(_ *fake, _ http.ResponseWriter, n int, c *fakeCoupon, _ string) bool {
			if n == 1 {
				c.amount--
			}
			return false
		}), nil, []string{"✗ exactly 20 users won\n      19 won"}},
		"gives one user two": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, user string) bool {
			if slices.Contains(c.claimedBy, user) && len(c.claimedBy) < c.amount {
				c.claimedBy = append(c.claimedBy, user)
				answer(w, "")
				return true
			}
			return false
		}), []string{"--users", "15", "--repeats", "100"}, []string{"✗ no user won twice\n      user-00000"}},
		"answers one user 201 twice": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, user string) bool {
			if slices.Contains(c.claimedBy, user) {
				answer(w, "")
				return true
			}
			return false
		}), []string{"--repeats", "100"}, []string{"✗ no user won twice\n      user-00000"}},
		"loses a claim": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 3 {
				answer(w, "")
			}
			return n == 3
		}), nil, []string{" got 201 or ALREADY_CLAIMED, and is not in claimed_by", "✗ exactly 20 users won\n      21 won"}},
		"checks the stock first": {claims(func(_ *fake, w http.ResponseWriter, _ int, c *fakeCoupon, _ string) bool {
			if len(c.claimedBy) == c.amount {
				answer(w, "OUT_OF_STOCK")
				return true
			}
			return false
		}), []string{"--repeats", "100"}, []string{"✗ no answer contradicts another\n      user-00000", " got OUT_OF_STOCK, and 201 or ALREADY_CLAIMED"}},
		"answers a first claim ALREADY_CLAIMED": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 200 {
				answer(w, "ALREADY_CLAIMED")
			}
			return n == 200
		}), []string{"--repeats", "0"}, []string{" got ALREADY_CLAIMED, and none of their claims can have succeeded"}},
		"answers OUT_OF_STOCK too early": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 1 {
				answer(w, "OUT_OF_STOCK")
			}
			return n == 1
		}), []string{"--repeats", "0", "--connections", "1"}, []string{" got 201 for a claim sent after the first OUT_OF_STOCK"}},
		"answers 500 once": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				fail(w, 500, "INTERNAL")
			}
			return n == 7
		}), nil, []string{"unexpected: 1 500 INTERNAL", " got 500 INTERNAL"}},
		"answers 500 always": {claims(func(_ *fake, w http.ResponseWriter, _ int, _ *fakeCoupon, _ string) bool {
			fail(w, 500, "INTERNAL")
			return true
		}), []string{"--users", "5"}, []string{"✗ exactly 5 users won\n      0 won", "✗ every user got a definite answer\n      user-0000001 got none", "and 2 more"}},
		"answers 404 once": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				fail(w, 404, "COUPON_NOT_FOUND")
			}
			return n == 7
		}), nil, []string{"unexpected: 1 404 COUPON_NOT_FOUND", " got 404 COUPON_NOT_FOUND"}},
		"answers HTML": {claims(func(_ *fake, w http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
			if n == 7 {
				w.WriteHeader(400)
				_, _ = w.Write([]byte("<html>"))
			}
			return n == 7
		}), nil, []string{"1 no answer (MALFORMED)", `error: malformed answer: status 400, and its body is not an error of the contract: "<html>"`}},
		"is slow": {claims(func(f *fake, _ http.ResponseWriter, _ int, _ *fakeCoupon, user string) bool {
			if strings.HasSuffix(user, "7") {
				f.sleepUnlocked(time.Second)
			}
			return false
		}), []string{"--users", "20", "--timeout", "300ms", "--duration", "2s"}, []string{"✗ every user got a definite answer\n", "user-0000007 got none", "TIMED_OUT"}},
		"is overloaded for ever": {claims(func(_ *fake, w http.ResponseWriter, _ int, _ *fakeCoupon, user string) bool {
			if strings.HasSuffix(user, "7") {
				fail(w, 503, "OVERLOADED")
				return true
			}
			return false
		}), []string{"--users", "20", "--duration", "1s"}, []string{"✗ every user got a definite answer\n      user-0000007 got none", "  stopped after 1s (--duration)\n"}},
		"cuts every connection": {claims(func(*fake, http.ResponseWriter, int, *fakeCoupon, string) bool {
			cut()
			return true
		}), []string{"--users", "5", "--duration", "1s"}, []string{"✗ every user got a definite answer", "CUT"}},
		"reports a claim too few":          {reports(func(r *fakeReport) { r.ClaimedBy = r.ClaimedBy[1:] }), nil, []string{"is not in claimed_by", "remaining_amount is 0, want 1"}},
		"reports an unknown user":          {reports(func(r *fakeReport) { r.ClaimedBy[3] = "mallory" }), nil, []string{`claimed_by has "mallory", which is not a user of this sale`}},
		"reports a user twice":             {reports(func(r *fakeReport) { r.ClaimedBy[3] = r.ClaimedBy[4] }), nil, []string{" is in claimed_by twice"}},
		"reports another remaining amount": {reports(func(r *fakeReport) { r.Remaining = 1 }), nil, []string{"remaining_amount is 1, want 0 with 20 users in claimed_by"}},
		"reports another order": {
			reports(func(r *fakeReport) { slices.Reverse(r.ClaimedBy) }),
			[]string{"--connections", "1"}, []string{" and was answered 201 before an earlier winner sent their claim"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--users", "300", "--stock", "20", "--connections", "8", "--repeats", "10"}, test.args...)
			code, out, errs := runCommand(t, append(args, test.fake.start(t))...)
			if code != exitFail || errs != "" || !strings.HasSuffix(out, "\n  FAIL\n") {
				t.Errorf("exit %d, stderr %q, stdout\n%s", code, errs, out)
			}
			for _, s := range test.want {
				if !strings.Contains(out, s) {
					t.Errorf("the output lacks %q:\n%s", s, out)
				}
			}
		})
	}
}

// Apart from its numbers, the summary of a sale that passes is always the same. README.md shows it.
func TestSummary(t *testing.T) {
	_, out, _ := runCommand(t, "--users", "300", "--stock", "20", "--connections", "8", (&fake{}).start(t))
	_, got, _ := strings.Cut(out, "\n\n")
	got = regexp.MustCompile(`[▁▂▃▄▅▆▇█]+`).ReplaceAllString(got, "▅")
	got = regexp.MustCompile(`sale-[0-9.-]+`).ReplaceAllString(got, "sale-N")
	got = regexp.MustCompile(` *[0-9][0-9,.]* (ms|s)\b`).ReplaceAllString(got, " TIME")
	got = regexp.MustCompile(`: [0-9,]+ per second`).ReplaceAllString(got, ": N per second")
	const want = `  300 users (5 % twice) for 20 coupons · 8 connections · all at once
  coupon sale-N · seed 1

          20  201 claimed
           K  409 already claimed
           K  400 out of stock
           0  503 retried
         315  claims answered in TIME: N per second  ▅

  latency  p50 TIME   p99 TIME   p99.9 TIME   longest TIME

  ✓ exactly 20 users won
  ✓ no user won twice
  ✓ every user got a definite answer
  ✓ no answer contradicts another
  ✓ the service reports the same winners

  PASS
`
	got = regexp.MustCompile(`(?m)^ *[0-9]+(  4\d\d )`).ReplaceAllString(got, "           K$1")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Ctrl-C ends the sale, and the answers so far are still checked.
func TestRun_interrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	url := (&fake{onClaim: func(_ *fake, _ http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
		if n == 100 {
			stop()
		}
		return false
	}}).start(t)
	var out, errs bytes.Buffer
	code := run(ctx, []string{"--users", "10000", "--stock", "20", "--connections", "4", url}, &out, &errs, nil)
	for _, s := range []string{"  stopped by the user\n", "✓ exactly 20 users won", "✗ every user got a definite answer",
		"✓ no answer contradicts another", "✓ the service reports the same winners"} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("the output lacks %q:\n%s", s, out.String())
		}
	}
	if code != exitFail || errs.Len() > 0 {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}

func TestRun_seed(t *testing.T) {
	winners := func(seed string) []string {
		f := &fake{}
		if code, out, _ := runCommand(t, "--users", "300", "--stock", "20", "--connections", "1", "--coupon", "sale", "--seed", seed, f.start(t)); code != exitPass {
			t.Fatal(out)
		}
		return f.coupons["sale"].claimedBy
	}
	first := winners("7")
	if !slices.Equal(first, winners("7")) {
		t.Error("the same seed gave different winners")
	}
	if slices.Equal(first, winners("8")) {
		t.Error("another seed gave the same winners")
	}
}

func TestRun_errors(t *testing.T) {
	t.Run("no service", func(t *testing.T) {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close()
		code, _, errs := runCommand(t, listener.Addr().String())
		if code != exitFail || !strings.Contains(errs, "create the coupon: ") || !strings.Contains(errs, "refused") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("the coupon cannot be created", func(t *testing.T) {
		code, _, errs := runCommand(t, (&fake{refuse: "POST"}).start(t))
		if code != exitFail || !strings.Contains(errs, "503") || !strings.Contains(errs, "UNAVAILABLE") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("the coupon cannot be read", func(t *testing.T) {
		code, out, errs := runCommand(t, "--users", "30", "--stock", "3", (&fake{refuse: "GET"}).start(t))
		if code != exitFail || !strings.Contains(errs, "answers not checked: read the coupon: ") || strings.Contains(out, "PASS") || strings.Contains(out, "FAIL") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
		if !strings.Contains(out, "201 claimed") {
			t.Errorf("the output lacks the answers:\n%s", out)
		}
	})
	t.Run("the coupon exists", func(t *testing.T) {
		url := (&fake{}).start(t)
		if code, out, _ := runCommand(t, "--users", "3", "--coupon", "sale 🎟 / 1", url); code != exitPass {
			t.Fatal(out)
		}
		code, _, errs := runCommand(t, "--users", "3", "--coupon", "sale 🎟 / 1", url)
		if code != exitUsage || !strings.Contains(errs, "use another --coupon") {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("the chart cannot be written", func(t *testing.T) {
		code, out, errs := runCommand(t, "--users", "3", "--plot", filepath.Join(t.TempDir(), "none", "sale.svg"), (&fake{}).start(t))
		if code != exitFail || !strings.Contains(errs, "write the chart: ") || !strings.Contains(out, "PASS") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
	})
}

// No load is sent to another machine by mistake: the address is checked before anything is sent.
func TestRun_remoteAddress(t *testing.T) {
	for _, target := range []string{"http://192.0.2.1:8080", "192.0.2.1", "http://[2001:db8::1]:8080", "http://0.0.0.0:8080", "172.17.0.2:8080"} {
		code, _, errs := runCommand(t, target)
		if code != exitUsage || !strings.Contains(errs, "is not this machine") || !strings.Contains(errs, "--allow-remote") {
			t.Errorf("%s: exit %d: %s", target, code, errs)
		}
	}
}

func TestRun_usage(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--users 0", "--users 0: must be from 1 to 10000000"},
		{"--stock 2147483648", "--stock 2147483648: must be from 1 to 2147483647"},
		{"--connections 0", "--connections 0: must be from 1 to 20000"},
		{"--rate -1", "--rate -1: must be from 0 (all at once)"},
		{"--rate NaN", "--rate NaN: must be from 0 (all at once)"},
		{"--rate 100", "--rate 100: 52,500 requests take 8m45s, more than --duration 2m0s"},
		{"--repeats 101", "--repeats 101: must be from 0 to 100 percent"},
		{"--seed -1", `invalid argument "-1" for "--seed" flag`},
		{"--coupon \u00a0", "--coupon \"\\u00a0\": must be 1 to 255 characters"},
		{"--coupon " + strings.Repeat("é", 256), "must be 1 to 255 characters"},
		{"--duration 0s", "--duration 0s: must be more than 0"},
		{"--timeout -1s", "--timeout -1s: must be more than 0"},
		{"--plot sale.png", "--plot sale.png: must end in .svg"},
		{"--wat", "unknown flag: --wat"},
		{"-users 5", "unknown shorthand flag"},
		{"https://127.0.0.1", "scheme must be http"},
		{"http://127.0.0.1/api", "must be a url like http://127.0.0.1:8080"},
		{"http://user@127.0.0.1", "must be a url like"},
		{"127.0.0.1 127.0.0.2", "2 urls (127.0.0.1 127.0.0.2), at most one is allowed"},
		{"--users 0 --stock 0", "--users 0: must be from 1 to 10000000\n--stock 0: "},
	} {
		code, out, errs := runCommand(t, strings.Split(test.args, " ")...)
		if code != exitUsage || out != "" || !strings.Contains(errs, test.want) || !strings.HasSuffix(errs, "\nsee --help\n") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", test.args, code, out, errs)
		}
	}
}

func TestRun_help(t *testing.T) {
	code, out, errs := runCommand(t, "--help")
	if code != exitPass || errs != "" {
		t.Errorf("exit %d: %s", code, errs)
	}
	for _, f := range []string{"users", "stock", "connections", "rate", "repeats", "seed", "coupon", "duration", "timeout", "plot", "no-color", "allow-remote"} {
		if !strings.Contains(out, "\n      --"+f) {
			t.Errorf("--%s is missing in\n%s", f, out)
		}
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "127.0.0.1:8080",
		"http://127.0.0.1:9000/":   "127.0.0.1:9000",
		"127.0.0.2:9000":           "127.0.0.2:9000",
		"http://[::1]:9000":        "[::1]:9000",
		"localhost":                "localhost:80",
		"--allow-remote 192.0.2.1": "192.0.2.1:80",
	} {
		o, err := parse(t.Context(), strings.Fields(in), time.Date(2026, 11, 23, 20, 15, 0, 0, time.UTC), os.Stderr)
		if err != nil || o.address != want {
			t.Errorf("%q: %s, %v", in, o.address, err)
		}
		if o.coupon != "sale-20261123-201500.000" {
			t.Errorf("coupon %q", o.coupon)
		}
	}
}
