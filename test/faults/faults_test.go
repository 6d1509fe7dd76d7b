package main

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

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
	h := newHistory(at(0))
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

// Each kind of violation is found.
func TestCheckStorage(t *testing.T) {
	t.Parallel()
	correct := storedCoupon{name: "c", amount: 3, remaining: 1, numbers: []int32{1, 2}, users: []string{"u0", "u1"}}
	tests := map[string]struct {
		answers map[int][]load.Answer // by user
		change  func(*storedCoupon)
		missing bool
		want    func(*violations) *violation
	}{
		"correct":                   {},
		"unknown, not stored":       {answers: map[int][]load.Answer{2: {load.OutcomeUnknown}}},
		"unknown, stored":           {answers: map[int][]load.Answer{2: {load.Cut}}, change: func(s *storedCoupon) { s.add("u2") }},
		"retried after UNAVAILABLE": {answers: map[int][]load.Answer{2: {load.Unavailable, load.Claimed}}, change: func(s *storedCoupon) { s.add("u2") }},
		"lost": {
			answers: map[int][]load.Answer{2: {load.Claimed}},
			want:    func(v *violations) *violation { return v.lost },
		},
		"409, and lost": {
			answers: map[int][]load.Answer{2: {load.OutcomeUnknown, load.AlreadyClaimed}},
			want:    func(v *violations) *violation { return v.lost },
		},
		"the coupon is lost": {missing: true, want: func(v *violations) *violation { return v.lost }},
		"granted twice": {
			answers: map[int][]load.Answer{1: {load.Claimed}},
			want:    func(v *violations) *violation { return v.duplicate },
		},
		"stored twice": {change: func(s *storedCoupon) { s.add("u1") }, want: func(v *violations) *violation { return v.duplicate }},
		"oversold": {
			answers: map[int][]load.Answer{2: {load.Claimed}, 3: {load.Claimed}},
			change:  func(s *storedCoupon) { s.add("u2"); s.add("u3") },
			want:    func(v *violations) *violation { return v.oversold },
		},
		"stored after OVERLOADED": {
			answers: map[int][]load.Answer{2: {load.Overloaded}},
			change:  func(s *storedCoupon) { s.add("u2") },
			want:    func(v *violations) *violation { return v.unrequested },
		},
		"stored for an unknown user": {change: func(s *storedCoupon) { s.add("mallory") }, want: func(v *violations) *violation { return v.unrequested }},
		"out of stock, but stored": {
			answers: map[int][]load.Answer{2: {load.Cut, load.OutOfStock}},
			change:  func(s *storedCoupon) { s.add("u2") },
			want:    func(v *violations) *violation { return v.contradiction },
		},
		"the sum is wrong":    {change: func(s *storedCoupon) { s.remaining = 2 }, want: func(v *violations) *violation { return v.contradiction }},
		"a number is missing": {change: func(s *storedCoupon) { s.numbers[1] = 3 }, want: func(v *violations) *violation { return v.contradiction }},
		"the amount is wrong": {change: func(s *storedCoupon) { s.amount, s.remaining = 4, 2 }, want: func(v *violations) *violation { return v.contradiction }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newStorageChecker("c", 3, 4)
			c.addCreation(load.Created)
			c.addClaim(0, load.Claimed)
			c.addClaim(1, load.Claimed)
			for user, answers := range test.answers {
				for _, a := range answers {
					c.addClaim(user, a)
				}
			}
			s := correct
			s.numbers, s.users = slices.Clone(s.numbers), slices.Clone(s.users)
			if test.change != nil {
				test.change(&s)
			}
			coupons := map[string]*storedCoupon{"c": &s}
			if test.missing {
				coupons = nil
			}
			v := newViolations()
			checkStorage([]*storageChecker{c}, coupons, v)
			if test.want == nil {
				if !v.none() {
					t.Errorf("found %v, want none", examples(v))
				}
				return
			}
			if test.want(v).count() == 0 {
				t.Errorf("found only %v", examples(v))
			}
		})
	}

	v := newViolations()
	refused := newStorageChecker("c", 3, 4)
	refused.addCreation(load.Unavailable)
	checkStorage([]*storageChecker{refused}, map[string]*storedCoupon{"c": {name: "c", amount: 3, remaining: 3}}, v)
	checkStorage(nil, map[string]*storedCoupon{"d": {name: "d", amount: 3, remaining: 3}}, v)
	if v.unrequested.count() != 2 {
		t.Errorf("two coupons that were not created: found %v", examples(v))
	}
}

// add adds a claim.
func (s *storedCoupon) add(user string) {
	s.numbers, s.users, s.remaining = append(s.numbers, int32(len(s.users)+1)), append(s.users, user), s.remaining-1
}

func examples(v *violations) (all []string) {
	for _, one := range v.all() {
		all = append(all, one.examples...)
	}
	return all
}

// An answer is allowed only while a fault that may cause it is active.
func TestOutages_allow(t *testing.T) {
	t.Parallel()
	none := &fault{name: "allows nothing"}
	some := &fault{name: "allows UNAVAILABLE", allowed: []load.Answer{load.Unavailable}}
	o := &outages{windows: []*outage{
		{faults: []*fault{none}, begin: at(1000), end: at(2000)},
		{faults: []*fault{some}, begin: at(3000), end: at(4000)},
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
		if got := o.allow(test.answer, at(test.from), at(test.end)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// The seed determines the schedule; each kind of fault comes once before any comes again, and two
// faults of one layer never come together.
func TestSchedule_next(t *testing.T) {
	t.Parallel()
	draw := func(seed uint64) (all []injection) {
		r := &faultTest{options: options{seed: seed}}
		s := &schedule{faults: allFaults(), random: r.random(faultStream, 0)}
		for range 60 {
			all = append(all, s.next())
		}
		return all
	}
	one, same, other := draw(1), draw(1), draw(2)
	namesOf := func(injections []injection) (all []string) {
		for _, n := range injections {
			all = append(all, names(n.faults))
			if len(n.faults) > 1 && n.faults[0].layer == n.faults[1].layer {
				t.Errorf("two faults of one layer: %s", names(n.faults))
			}
			if len(n.faults) > 1 && slices.ContainsFunc(n.faults, func(f *fault) bool { return f.start != nil }) {
				t.Errorf("a fault during which others are measured does not come alone: %s", names(n.faults))
			}
		}
		return all
	}
	if !slices.Equal(namesOf(one), namesOf(same)) || one[7].delay != same[7].delay || !slices.Equal(one[7].seeds, same[7].seeds) {
		t.Error("the same seed drew other faults")
	}
	if slices.Equal(namesOf(one), namesOf(other)) {
		t.Error("another seed drew the same faults")
	}
	first := strings.Join(namesOf(one[:len(allFaults())]), " + ")
	for _, f := range allFaults() {
		if !strings.Contains(first, f.name) {
			t.Errorf("%s is not among the first %d", f.name, len(allFaults()))
		}
		if f.action == "" || f.reason == "" {
			t.Errorf("%s has no action or no reason", f.name)
		}
		if alone := f.start != nil; alone != (f.layer == clientLayer) || alone != (f.inject == nil) || alone != (f.slowdown > 1) {
			t.Errorf("%s: layer %d, inject set: %v, start set: %v, slowdown %v", f.name, f.layer, f.inject != nil, alone, f.slowdown)
		}
	}
}

// The report says "no violations" only if there are none, and lists those that there are.
func TestFaultTest_report(t *testing.T) {
	t.Parallel()
	r := newFaultTest(options{duration: time.Minute, seed: 7}, &bytes.Buffer{})
	r.env = &environment{}
	if report := r.report(); !strings.HasPrefix(report, "# Fault test: no violations\n") || !strings.Contains(report, "DURATION=1m0s SEED=7") {
		t.Error(report)
	}
	for _, v := range r.violations.all() {
		v.add("an example of %s", v.what)
		report := r.report()
		if !strings.HasPrefix(report, "# Fault test: VIOLATIONS\n") || !strings.Contains(report, "an example of "+v.what) || !strings.Contains(report, "| "+v.what+" | 1 |") {
			t.Errorf("%s: %s", v.what, report)
		}
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
		r := newFaultTest(options{}, &bytes.Buffer{})
		r.addAnswer(answer, load.Response{Sent: at(1), Answered: at(2)}, nil, false)
		if got := r.violations.notAllowed.count(); got != want {
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
		r := newFaultTest(options{}, &bytes.Buffer{})
		r.env = &environment{}
		r.compare(comparison{&fault{name: "a storm", slowdown: 5}, test.before, test.during})
		if got := r.violations.slow.count(); got != test.want {
			t.Errorf("%+v: %d violations", test, got)
		}
		if report := r.report(); !strings.Contains(report, "| a storm | 1000 |") {
			t.Errorf("the comparison is not in the report: %s", report)
		}
	}
}

// An instance that uses more than a container has, or that has exited, does not go unnoticed.
func TestFaultTest_checkMemory(t *testing.T) {
	t.Parallel()
	r := newFaultTest(options{}, &bytes.Buffer{})
	r.env = &environment{instances: []*instance{{address: "127.0.0.1:1"}}}
	if err := r.checkMemory("a fault"); err == nil {
		t.Error("no error for an instance that does not run")
	}
	r.env.instances[0].cmd = &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}
	if err := r.checkMemory("a fault"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/proc/self/status"); err == nil && (r.count.figures().largest < 1<<20 || r.violations.memory.count() > 0) {
		t.Errorf("this process: %d bytes, %v", r.count.figures().largest, examples(r.violations))
	}
}

// A checker can get more users while it is used.
func TestStorageChecker_grow(t *testing.T) {
	t.Parallel()
	c := newStorageChecker("c", 9, 0)
	c.grow(2)
	c.addClaim(1, load.Claimed)
	c.grow(1)
	c.grow(5)
	if len(c.userAnswers) != 5 || c.userAnswers[1] != gotClaimed {
		t.Errorf("answers: %v", c.userAnswers)
	}
}

func TestRun_wrongCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--duration", "0s"}, {"--progress", "0s"}, {"--report", ""}, {"--bogus"}, {"word"}, {"--faults", "("}, {"--faults", "no such fault"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &bytes.Buffer{}, &stderr); code != exitUsage || stderr.Len() == 0 {
			t.Errorf("%v: exit code %d, %q", args, code, stderr.String())
		}
	}
}
