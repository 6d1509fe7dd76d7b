package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
)

// runCommand runs the command with these arguments.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// expectOutput runs a sale of 20 coupons for 300 users, and checks the exit status and that the
// output has each text of want.
func expectOutput(t *testing.T, f *fake, wantCode int, args []string, want ...string) {
	t.Helper()
	args = append([]string{"--users", "300", "--stock", "20", "--connections", "8"}, args...)
	code, out, errs := runCommand(t, append(args, f.start(t))...)
	end := map[int]string{exitPass: "\n  PASS\n", exitFail: "\n  FAIL\n"}[wantCode]
	if code != wantCode || errs != "" || !strings.HasSuffix(out, end) {
		t.Errorf("exit %d, stderr %q, stdout\n%s", code, errs, out)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
}

// A service may be slow, overloaded or disconnected, and the sale passes.
func TestRun_pass(t *testing.T) {
	every5th := func(answer load.Answer, committed bool) func(c fakeClaim) bool {
		return func(c fakeClaim) bool {
			if c.n%5 == 0 && committed {
				c.claim()
			}
			return c.n%5 == 0 && c.answer(answer)
		}
	}
	for name, test := range map[string]struct {
		onClaim func(c fakeClaim) bool
		args    []string
		want    []string
	}{
		"no faults":             {nil, nil, []string{"201 claimed\n", "✓ exactly 20 users won", "✓ every user got a definite answer"}},
		"at a rate":             {nil, []string{"--rate", "3000"}, []string{"3,000 per second\n"}},
		"more stock than users": {nil, []string{"--stock", "1000"}, []string{"✓ exactly 300 users won"}},
		"one user":              {nil, []string{"--users", "1", "--stock", "1"}, []string{"1 user (5 % twice) for 1 coupon ·", "✓ exactly 1 user won"}},
		"overloaded":            {every5th(load.Overloaded, false), nil, []string{"  503 OVERLOADED\n"}},
		"outcome unknown, committed": {
			every5th(load.OutcomeUnknown, true), nil, []string{"OUTCOME_UNKNOWN", " got an ambiguous answer: ", " 0 are unresolved"},
		},
		"outcome unknown, not committed": {
			every5th(load.OutcomeUnknown, false), nil, []string{"OUTCOME_UNKNOWN", " got an ambiguous answer: ", " 0 had won"},
		},
		"connection cut after the claim": {func(c fakeClaim) bool {
			if c.n%5 == 0 {
				c.claim()
				cut()
			}
			return false
		}, nil, []string{"  no answer (CUT)\n", " got an ambiguous answer: "}},
		"time-out after the claim": {func(c fakeClaim) bool {
			if c.n == 5 {
				c.claim()
				return c.untilGone()
			}
			return false
		}, []string{"--timeout", "300ms"}, []string{"  no answer (TIMED_OUT)\n", " got an ambiguous answer: ", " 0 are unresolved"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expectOutput(t, &fake{onClaim: test.onClaim}, exitPass, test.args, test.want...)
		})
	}
}

// A service that breaks the contract fails the sale. Package check tests each kind of violation.
func TestRun_fail(t *testing.T) {
	for name, test := range map[string]struct {
		fake *fake
		args []string
		want []string
	}{
		"oversells": {&fake{onClaim: func(c fakeClaim) bool {
			if c.n == 1 {
				c.Set(c.coupon, 21)
			}
			return false
		}}, []string{"--connections", "1"}, []string{"✗ exactly 20 users won\n      21 won", "✗ the service reports the same winners\n      amount is 21, want 20"}},
		"answers 500 always": {
			&fake{onClaim: func(c fakeClaim) bool { return c.answer(load.Answer{Status: 500, Code: "INTERNAL"}) }},
			[]string{"--users", "5"},
			[]string{"15  500 INTERNAL\n", "✗ exactly 5 users won\n      0 won", "✗ every user got a definite answer\n      user-0000001 got none", "and 2 more"},
		},
		"answers HTML": {&fake{onClaim: func(c fakeClaim) bool {
			if c.n == 7 {
				c.w.WriteHeader(http.StatusBadRequest)
				_, _ = c.w.Write([]byte("<html>"))
			}
			return c.n == 7
		}}, nil, []string{"1  no answer (MALFORMED)\n", `error: malformed answer: status 400, and its body is not an error of the contract: "<html>"`}},
		"does not answer": {
			&fake{onClaim: fakeClaim.untilGone},
			[]string{"--users", "1", "--timeout", "50ms", "--duration", "500ms"},
			[]string{"✗ every user got a definite answer\n      user-0000001 got none", "TIMED_OUT", "  stopped: after 500ms (--duration)\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expectOutput(t, test.fake, exitFail, test.args, test.want...)
		})
	}
}

// Apart from its numbers, the summary of a sale that passes is always the same. README.md shows it.
func TestSale_summary(t *testing.T) {
	_, out, _ := runCommand(t, "--users", "300", "--stock", "20", "--connections", "8", (&fake{}).start(t))
	_, got, _ := strings.Cut(out, "\n\n")
	for pattern, with := range map[string]string{
		`[▁▂▃▄▅▆▇█]+`: "▅", `sale-[0-9.-]+`: "sale-N", `[0-9.]+ (µs|ms|s)\b`: "TIME", `: [0-9,]+ per second`: ": N per second",
		`(?m)^ *[0-9]+(  4\d\d )`: "           K$1",
	} {
		got = regexp.MustCompile(pattern).ReplaceAllString(got, with)
	}
	const want = `  300 users (5 % twice) for 20 coupons · 8 connections · all at once
  coupon sale-N

          20  201 claimed
           K  409 already claimed
           K  400 out of stock
         315  claims answered in TIME: N per second  ▅

  latency  p50 TIME   p99 TIME   p99.9 TIME   longest TIME

  ✓ exactly 20 users won
  ✓ no user won twice
  ✓ every user got a definite answer
  ✓ no answer contradicts another
  ✓ the service reports the same winners

  PASS
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Ctrl-C ends the sale, and the answers so far are still checked.
func TestRun_interrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	url := (&fake{onClaim: func(c fakeClaim) bool {
		if c.n == 100 {
			stop()
		}
		return false
	}}).start(t)
	var out, errs bytes.Buffer
	code := run(ctx, []string{"--users", "10000", "--stock", "20", "--connections", "4", url}, &out, &errs)
	for _, s := range []string{"  stopped: context canceled\n", "✓ exactly 20 users won", "✗ every user got a definite answer",
		"✓ no answer contradicts another", "✓ the service reports the same winners"} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("the output lacks %q:\n%s", s, out.String())
		}
	}
	if code != exitFail || errs.Len() > 0 {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}

// While the last answers are awaited after --duration, the next Ctrl-C ends the process.
func TestRunSale_restoresSignals(t *testing.T) {
	restored := make(chan struct{})
	f := &fake{onClaim: func(fakeClaim) bool {
		select {
		case <-restored:
		case <-time.After(10 * time.Second):
			t.Error("signals are not restored while an answer is awaited")
		}
		return false
	}}
	o := options{URL: f.start(t), Users: 1, Stock: 1, Connections: 1, Duration: 100 * time.Millisecond, Timeout: time.Minute}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := runSale(t.Context(), func() { close(restored) }, o, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestRun_errors(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	url := (&fake{}).start(t)
	for name, test := range map[string]struct {
		args []string
		code int
		want []string // in stderr
		out  string   // in stdout
	}{
		"no service":                   {[]string{"http://" + listener.Addr().String()}, exitFail, []string{"create the coupon: ", "refused", "\nstart the service first: make run\n"}, ""},
		"the coupon cannot be created": {[]string{(&fake{refuse: "POST"}).start(t)}, exitFail, []string{"503", "UNAVAILABLE"}, ""},
		"the coupon cannot be read":    {[]string{(&fake{refuse: "GET"}).start(t)}, exitFail, []string{"answers not checked: read the coupon: "}, "201 claimed"},
		"the chart cannot be written":  {[]string{"--plot", filepath.Join(t.TempDir(), "none", "sale.svg"), url}, exitFail, []string{"write the chart: "}, "PASS"},
	} {
		code, out, errs := runCommand(t, append([]string{"--users", "30", "--stock", "3"}, test.args...)...)
		if code != test.code || !strings.Contains(out, test.out) || test.out != "PASS" && strings.Contains(out, "PASS") || strings.Contains(out, "FAIL") {
			t.Errorf("%s: exit %d: %s", name, code, out)
		}
		for _, want := range test.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: %s", name, errs)
			}
		}
	}
}

func TestRun_usage(t *testing.T) {
	for args, want := range map[string]string{
		"--users 10000001":    "--users 10000001: must be from 1 to 10000000",
		"--connections 0":     "--connections 0: must be at least 1",
		"--rate=-1":           "--rate -1: must be at least 0 (all at once)",
		"--rate NaN":          "--rate NaN: must be at least 0 (all at once)",
		"--rate 100":          "--rate 100: must be more: the users need 525 s to arrive, and --duration is 2m0s",
		"--duration 0s":       "--duration 0s: must be more than 0",
		"--timeout=-1s":       "--timeout -1s: must be more than 0",
		"--plot sale.png":     "--plot sale.png: must be a name that ends in .svg",
		"--wat":               "unknown flag --wat",
		"https://127.0.0.1":   "must be a URL like",
		"http://127.0.0.1/a":  "must be a URL like",
		"http://u@127.0.0.1":  "must be a URL like",
		"127.0.0.1:8080":      "must be a URL like",
		"--users 0 --stock 0": "--users 0: must be from 1 to 10000000\n--stock 0: ",
		// No load is sent to another machine by mistake.
		"http://192.0.2.1:8080":     "192.0.2.1 is not this machine: use 127.0.0.1, or --allow-remote",
		"http://[2001:db8::1]:8080": "is not this machine",
		"http://0.0.0.0:8080":       "is not this machine",
		"http://example.org":        "is not this machine",
	} {
		code, out, errs := runCommand(t, strings.Split(args, " ")...)
		if code != exitUsage || out != "" || !strings.Contains(errs, want) || !strings.HasSuffix(errs, "\nsee --help\n") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
	code, out, errs := runCommand(t, "--help")
	if code != exitPass || errs != "" || !strings.Contains(out, "--users=50000") || !strings.Contains(out, "http://127.0.0.1:8080") || !strings.Contains(out, "exit status") {
		t.Errorf("exit %d: %s%s", code, errs, out)
	}
}

func TestOptions_setAddress(t *testing.T) {
	for o, want := range map[options]string{
		{URL: "http://127.0.0.1:9000/"}:              "127.0.0.1:9000",
		{URL: "http://127.0.0.2"}:                    "127.0.0.2:80",
		{URL: "http://[::1]:9000"}:                   "[::1]:9000",
		{URL: "http://localhost:8080"}:               "localhost:8080",
		{URL: "http://192.0.2.1", AllowRemote: true}: "192.0.2.1:80",
	} {
		if err := o.setAddress(); err != nil || o.address != want {
			t.Errorf("%s: %s, %v", o.URL, o.address, err)
		}
	}
}
