package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// at returns the time ms milliseconds after the start.
func at(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }

// event is an operation of a history. Without times it comes a second after the one before.
type event struct {
	in        input
	out       output
	from, end int
}

func claims(user string, a load.Answer, when ...int) event {
	e := event{in: input{kind: claim, user: user}, out: output{answer: a}}
	if len(when) == 2 {
		e.from, e.end = when[0], when[1]
	}
	return e
}

func creates(amount int) event {
	return event{in: input{kind: create, amount: amount}, out: output{answer: load.Created}}
}

func reads(amount int, users ...string) event {
	return event{in: input{kind: read}, out: output{answer: load.ReadOK, coupon: couponmodel.Coupon{Amount: amount, ClaimedBy: users}}}
}

func historyOf(events ...event) *history {
	h := &history{began: at(0)}
	for i, e := range events {
		if e.end == 0 {
			e.from, e.end = 1000*i, 1000*i+1
		}
		h.add(0, e.in, e.out, at(e.from), at(e.end))
	}
	return h
}

// The histories of a correct service are linearizable, and those of a faulty one are not.
func TestHistory_check(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want   porcupine.CheckResult
		events []event
	}{
		"correct":                      {porcupine.Ok, []event{creates(1), claims("a", load.Claimed), claims("b", load.OutOfStock), claims("a", load.AlreadyClaimed), reads(1, "a")}},
		"lost":                         {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), reads(2)}},
		"lost, and granted to others":  {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed), claims("b", load.Claimed), reads(1, "b")}},
		"granted twice":                {porcupine.Illegal, []event{creates(3), claims("a", load.Claimed), claims("a", load.Claimed)}},
		"stored twice":                 {porcupine.Illegal, []event{creates(3), claims("a", load.Claimed), reads(3, "a", "a")}},
		"oversold":                     {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed), claims("b", load.Claimed)}},
		"oversold concurrently":        {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed, 1000, 1010), claims("b", load.Claimed, 1005, 1015)}},
		"409 and then 201":             {porcupine.Illegal, []event{creates(2), claims("a", load.AlreadyClaimed), claims("a", load.Claimed)}},
		"out of stock with stock left": {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), claims("b", load.OutOfStock)}},
		"stale read":                   {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), reads(2), reads(2, "a")}},
		"concurrent read": {porcupine.Ok, []event{creates(2), claims("a", load.Claimed, 1000, 9000),
			{in: input{kind: read}, out: output{answer: load.ReadOK, coupon: couponmodel.Coupon{Amount: 2}}, from: 2000, end: 2001}, claims("a", load.AlreadyClaimed, 9500, 9501)}},

		"unknown, executed":                     {porcupine.Ok, []event{creates(2), claims("a", load.OutcomeUnknown), claims("a", load.AlreadyClaimed), reads(2, "a")}},
		"unknown, not executed":                 {porcupine.Ok, []event{creates(2), claims("a", load.OutcomeUnknown), reads(2), claims("a", load.Claimed)}},
		"unknown, executed much later":          {porcupine.Ok, []event{creates(2), claims("a", load.Cut), reads(2), claims("b", load.Claimed), reads(2, "b"), reads(2, "b", "a")}},
		"unknown twice, executed twice":         {porcupine.Illegal, []event{creates(3), claims("a", load.Cut), claims("a", load.Cut), reads(3, "a", "a")}},
		"unknown, executed before it was sent":  {porcupine.Illegal, []event{creates(2), reads(2, "a"), claims("a", load.OutcomeUnknown)}},
		"unknown, takes the rest of the stock":  {porcupine.Ok, []event{creates(1), claims("a", load.TimedOut), claims("b", load.OutOfStock)}},
		"not executed, but stored":              {porcupine.Illegal, []event{creates(2), claims("a", load.Unavailable), reads(2, "a")}},
		"not executed, but the stock is gone":   {porcupine.Illegal, []event{creates(1), claims("a", load.Overloaded), claims("b", load.OutOfStock)}},
		"creation unknown, executed later":      {porcupine.Ok, []event{{in: input{kind: create, amount: 1}, out: output{answer: load.OutcomeUnknown}}, claims("a", load.CouponNotFound), claims("a", load.Claimed)}},
		"creation unknown, executed and undone": {porcupine.Illegal, []event{{in: input{kind: create, amount: 1}, out: output{answer: load.OutcomeUnknown}}, claims("a", load.Claimed), claims("b", load.CouponNotFound)}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := historyOf(test.events...)
			if got := h.check(); got != test.want {
				t.Errorf("%s, want %s: %s", got, test.want, h)
			}
		})
	}
}

// The largest history of a small coupon, in which all claims are ambiguous, is decided in time.
func TestHistory_check_largest(t *testing.T) {
	t.Parallel()
	events := []event{creates(3)}
	for i := range groupClients * maxOperations * maxAttempts {
		events = append(events, claims(userName(i%smallUsers), load.OutcomeUnknown, 10+i, 20+i))
	}
	// The final state is one that the search tries late.
	events = append(events, event{in: input{kind: read}, from: 100_000, end: 100_001,
		out: output{answer: load.ReadOK, coupon: couponmodel.Coupon{Amount: 3, ClaimedBy: []string{"u5", "u3", "u4"}}}})
	if h := historyOf(events...); h.check() != porcupine.Ok {
		t.Errorf("%s: %s", h.check(), h)
	}
	events = append(events, event{in: input{kind: claim, user: "u0"}, out: output{answer: load.Claimed}, from: 200_000, end: 200_001})
	if h := historyOf(events...); h.check() != porcupine.Illegal {
		t.Errorf("%s: %s", h.check(), h)
	}
}

// What bench/check finds is a violation, except that not every user of a coupon with faults gets a
// definite answer.
func TestFaultTest_checkAll(t *testing.T) {
	t.Parallel()
	correct := load.Coupon{Name: "c", Amount: 3, Remaining: 1, ClaimedBy: []string{"u0", "u1"}}
	for name, test := range map[string]struct {
		answers []load.Answer // to the third user
		stored  load.Coupon
		want    check.Kind
	}{
		"correct":             {nil, correct, ""},
		"unknown, not stored": {[]load.Answer{load.OutcomeUnknown}, correct, ""},
		"lost":                {[]load.Answer{load.Claimed}, correct, check.Lost},
		"the coupon is lost":  {nil, load.Coupon{}, check.Lost},
		"not created":         {nil, load.Coupon{Name: "d", Amount: 3, Remaining: 3}, check.Unrequested},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newFaultTest(options{}, io.Discard)
			c := r.newCoupon("c", 3)
			c.RecordCreation(load.Created, time.Now())
			for user, answers := range [][]load.Answer{{load.Claimed}, {load.Claimed}, test.answers} {
				for _, a := range answers {
					c.Record(userName(user), a, time.Time{}, time.Time{})
				}
			}
			r.checkAll([]load.Coupon{test.stored})
			if _, found := r.violations[test.want]; len(r.violations) > 0 != (test.want != "") || found != (test.want != "") {
				t.Errorf("found %v, want %q", r.violations, test.want)
			}
		})
	}
}

// Gaps between claim numbers, which no answer shows, are found in the tables.
func TestEnvironment_storedCoupons(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	conn := database.Connect(t)
	for _, sql := range []string{
		`select coupond.create_coupon('none', 1), coupond.create_coupon('gap', 5), coupond.create_coupon('fine', 5)`,
		`select coupond.claim_coupon(u, c) from unnest(array['ann', 'bob', 'eve']) as u, unnest(array['gap', 'fine']) as c`,
		`set session_replication_role = replica`, // without the triggers that refuse this
		`delete from coupond.claims where coupon_name = 'gap' and user_id = 'bob'`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := (&environment{ownerURL: database.URL}).storedCoupons(t.Context())
	if want := []load.Coupon{
		{Name: "fine", Amount: 5, Remaining: 2, ClaimedBy: []string{"ann", "bob", "eve"}},
		{Name: "gap", Amount: 5, Remaining: 2, ClaimedBy: []string{"ann", "", "eve"}},
		{Name: "none", Amount: 1, Remaining: 1, ClaimedBy: []string{}},
	}; err != nil || !reflect.DeepEqual(stored, want) {
		t.Errorf("%+v, %v, want %+v", stored, err, want)
	}
	r := newFaultTest(options{}, io.Discard)
	gap := r.newCoupon("gap", 5)
	gap.Record("ann", load.Claimed, time.Time{}, time.Time{})
	gap.Record("eve", load.Claimed, time.Time{}, time.Time{})
	if r.checkAll(stored[1:2]); len(r.violations[check.Unrequested]) != 1 {
		t.Errorf("the gap is not a violation: %v", r.violations)
	}
}

// An answer is allowed only while a fault that may cause it is active.
func TestFaultTest_allow(t *testing.T) {
	t.Parallel()
	none := &fault{name: "allows nothing"}
	some := &fault{name: "allows UNAVAILABLE", allowed: []load.Answer{load.Unavailable}}
	r := &faultTest{outages: []*outage{
		{faults: []*fault{none}, start: at(1000), end: at(2000)},
		{faults: []*fault{some}, start: at(3000), end: at(4000)},
	}}
	for _, test := range []struct {
		answer    load.Answer
		from, end int
		want      bool
	}{
		{load.Unavailable, 2500, 2600, false},
		{load.Unavailable, 2500, 3001, true},
		{load.Unavailable, 3100, 3200, true},
		{load.Unavailable, 3900, 9000, true},
		{load.Unavailable, 4001, 4002, false},
		{load.Unavailable, 1500, 1600, false},
		{load.OutcomeUnknown, 3100, 3200, false},
	} {
		if got := r.allow(test.answer, at(test.from), at(test.end)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// The seed determines the schedule; each kind of fault comes once before any comes again, two
// faults of one layer never come together, and those during which others are measured come alone.
func TestSchedule(t *testing.T) {
	t.Parallel()
	draw := func(seed uint64) (names []string) {
		r := &faultTest{options: options{Seed: seed}}
		for next := range schedule(allFaults(), r.random(scheduleStream, 0)) {
			names = append(names, fmt.Sprintf("%q", next))
			if len(next) > 1 && (next[0].layer == next[1].layer || next[0].disturb != nil || next[1].disturb != nil) {
				t.Errorf("these come together: %q", next)
			}
			if len(names) == 60 {
				break
			}
		}
		return names
	}
	one := draw(1)
	if !slices.Equal(one, draw(1)) || slices.Equal(one, draw(2)) {
		t.Error("the same seed drew other faults, or another seed the same")
	}
	first := strings.Join(one[:len(allFaults())], " + ")
	for _, f := range allFaults() {
		if !strings.Contains(first, f.name) {
			t.Errorf("%s is not among the first %d", f.name, len(allFaults()))
		}
		if alone := f.disturb != nil; alone != (f.layer == clientLayer) || alone != (f.inject == nil) || alone != (f.slowdown > 1) {
			t.Errorf("%s: layer %d, inject set: %v, disturb set: %v, slowdown %v", f.name, f.layer, f.inject != nil, alone, f.slowdown)
		}
	}
}

// A run without a fault is a violation.
func TestFaultTest_injectFaults_none(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for only, ctx := range map[string]context.Context{"no such fault": t.Context(), ".": ended} {
		r := newFaultTest(options{Only: regexp.MustCompile(only)}, io.Discard)
		if r.injectFaults(t.Context(), ctx); len(r.violations[notRecovered]) != 1 {
			t.Errorf("--only %q: %v", only, r.violations)
		}
	}
}

// The report says "no violations" only if there are none, and lists those that there are.
func TestFaultTest_report(t *testing.T) {
	t.Parallel()
	r := newFaultTest(options{Duration: time.Minute, Seed: 7}, io.Discard)
	if report := r.report(); !strings.HasPrefix(report, "# Fault test: no violations\n") || !strings.Contains(report, "DURATION=1m0s SEED=7") {
		t.Error(report)
	}
	for i := range 7 {
		r.violated(check.Lost, "example %d", i)
	}
	r.violated(notAllowed, "a 500")
	r.compare(&fault{name: "a storm", slowdown: 5}, 1000, 900)
	report := r.report()
	for _, want := range []string{"# Fault test: VIOLATIONS\n", "8 violations", "7 × " + string(check.Lost), "example 4", "1 × " + string(notAllowed), "a 500", "- a storm: "} {
		if !strings.Contains(report, want) {
			t.Errorf("%q is not in the report:\n%s", want, report)
		}
	}
	if strings.Contains(report, "example 5") {
		t.Errorf("more examples than necessary:\n%s", report)
	}
}

// Without an active fault, UNAVAILABLE and OVERLOADED are only counted; other answers that the
// contract does not have for a valid request are violations.
func TestFaultTest_addAnswer(t *testing.T) {
	t.Parallel()
	for answer, want := range map[load.Answer]int{
		load.Claimed: 0, load.CouponNotFound: 0, load.Unavailable: 0, load.Overloaded: 0,
		load.OutcomeUnknown: 1, load.Cut: 1, load.TimedOut: 1, load.Malformed: 1, load.NotSent: 1,
		{Status: 500, Code: "INTERNAL"}: 1, {Status: 400, Code: "INVALID_REQUEST"}: 1,
	} {
		r := newFaultTest(options{}, io.Discard)
		r.addAnswer(answer, load.Response{Sent: at(1), Answered: at(2)}, nil, false)
		if got := len(r.violations[notAllowed]); got != want {
			t.Errorf("%v: %d violations, want %d", answer, got, want)
		}
	}
}

// A fault of other clients is a violation if claims took longer than it allows, also if there was
// no answer at all.
func TestFaultTest_compare(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		before, during float64
		want           int
	}{
		{1000, 1000, 0}, {1000, 201, 0}, {1000, 199, 1}, {1000, 0, 1}, {1000, 5000, 0},
	} {
		r := newFaultTest(options{}, io.Discard)
		r.compare(&fault{name: "a storm", slowdown: 5}, test.before, test.during)
		if got := len(r.violations[tooSlow]); got != test.want {
			t.Errorf("%+v: %d violations", test, got)
		}
	}
}

// An instance that uses more than a container has, or that has exited, does not go unnoticed.
func TestFaultTest_checkMemory(t *testing.T) {
	t.Parallel()
	r := newFaultTest(options{}, io.Discard)
	one := &instance{address: "127.0.0.1:1"}
	r.env.instances = []*instance{one}
	if err := r.checkMemory(); err == nil {
		t.Error("no error for an instance that does not run")
	}
	one.cmd = &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}
	if err := r.checkMemory(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/proc/self/status"); err == nil && (r.memory < 1<<20 || len(r.violations[tooLarge]) > 0) {
		t.Errorf("this process: %d bytes, %v", r.memory, r.violations)
	}
}
