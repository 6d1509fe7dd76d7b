package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// at is a moment of a made-up history.
func at(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }

// event is a request of a made-up history and its answer. One that does not say when comes a second after the last.
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
	return event{in: input{kind: create, amount: amount}, out: output{answer: couponmodel.Created}}
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

// The proof can fail: histories of a service that is wrong have no order, and those of one that is right have.
func TestHistories(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want   porcupine.CheckResult
		events []event
	}{
		"right":                       {porcupine.Ok, []event{creates(1), claims("a", load.Claimed), claims("b", load.OutOfStock), claims("a", load.AlreadyClaimed), reads(1, "a")}},
		"lost":                        {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), reads(2)}},
		"lost, and granted to others": {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed), claims("b", load.Claimed), reads(1, "b")}},
		"doubled":                     {porcupine.Illegal, []event{creates(3), claims("a", load.Claimed), claims("a", load.Claimed)}},
		"doubled in the table":        {porcupine.Illegal, []event{creates(3), claims("a", load.Claimed), reads(3, "a", "a")}},
		"oversold":                    {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed), claims("b", load.Claimed)}},
		"oversold by two at once":     {porcupine.Illegal, []event{creates(1), claims("a", load.Claimed, 1000, 1010), claims("b", load.Claimed, 1005, 1015)}},
		"409 and then 201":            {porcupine.Illegal, []event{creates(2), claims("a", load.AlreadyClaimed), claims("a", load.Claimed)}},
		"sold out with stock left":    {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), claims("b", load.OutOfStock)}},
		"stale read":                  {porcupine.Illegal, []event{creates(2), claims("a", load.Claimed), reads(2), reads(2, "a")}},
		"read at the same time": {porcupine.Ok, []event{creates(2), claims("a", load.Claimed, 1000, 9000),
			{in: input{kind: read}, out: output{answer: load.ReadOK, coupon: couponmodel.Coupon{Amount: 2}}, from: 2000, end: 2001}, claims("a", load.AlreadyClaimed, 9500, 9501)}},

		"unknown, and it was":                     {porcupine.Ok, []event{creates(2), claims("a", load.OutcomeUnknown), claims("a", load.AlreadyClaimed), reads(2, "a")}},
		"unknown, and it was not":                 {porcupine.Ok, []event{creates(2), claims("a", load.OutcomeUnknown), reads(2), claims("a", load.Claimed)}},
		"unknown, and it was much later":          {porcupine.Ok, []event{creates(2), claims("a", load.Cut), reads(2), claims("b", load.Claimed), reads(2, "b"), reads(2, "b", "a")}},
		"unknown twice, and once is all":          {porcupine.Illegal, []event{creates(3), claims("a", load.Cut), claims("a", load.Cut), reads(3, "a", "a")}},
		"unknown, but not before it was sent":     {porcupine.Illegal, []event{creates(2), reads(2, "a"), claims("a", load.OutcomeUnknown)}},
		"unknown takes the last piece":            {porcupine.Ok, []event{creates(1), claims("a", load.TimedOut), claims("b", load.OutOfStock)}},
		"surely not, and it was":                  {porcupine.Illegal, []event{creates(2), claims("a", load.Unavailable), reads(2, "a")}},
		"surely not, and another had it all":      {porcupine.Illegal, []event{creates(1), claims("a", load.Overloaded), claims("b", load.OutOfStock)}},
		"creation unknown, and it was":            {porcupine.Ok, []event{{in: input{kind: create, amount: 1}, out: output{answer: load.OutcomeUnknown}}, claims("a", load.CouponNotFound), claims("a", load.Claimed)}},
		"creation unknown, and then not any more": {porcupine.Illegal, []event{{in: input{kind: create, amount: 1}, out: output{answer: load.OutcomeUnknown}}, claims("a", load.Claimed), claims("b", load.CouponNotFound)}},
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

// A cell at its worst is decided: everybody asks as often as he may, and nobody ever learns anything.
func TestAWorstCellIsDecided(t *testing.T) {
	t.Parallel()
	events := []event{creates(3)}
	for i := range members * mostClaims * mostTries {
		events = append(events, claims(userName(i%cellUsers), load.OutcomeUnknown, 10+i, 20+i))
	}
	// Those who have it in the end have it in the least likely order.
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

// The comparison with the tables finds what is lost, doubled, oversold, and all else that must never be.
func TestLedgers(t *testing.T) {
	t.Parallel()
	right := stored{name: "c", amount: 3, remaining: 1, numbers: []int32{1, 2}, users: []string{"u0", "u1"}}
	tests := map[string]struct {
		answers map[int][]load.Answer
		change  func(*stored)
		gone    bool
		want    func(*findings) *finding
	}{
		"right":                      {},
		"unknown, and it was not":    {answers: map[int][]load.Answer{2: {load.OutcomeUnknown}}},
		"unknown, and it was":        {answers: map[int][]load.Answer{2: {load.Cut}}, change: func(s *stored) { s.add("u2") }},
		"asked again after a refuse": {answers: map[int][]load.Answer{2: {load.Unavailable, load.Claimed}}, change: func(s *stored) { s.add("u2") }},
		"lost": {
			answers: map[int][]load.Answer{2: {load.Claimed}},
			want:    func(f *findings) *finding { return f.lost },
		},
		"told 409, and lost": {
			answers: map[int][]load.Answer{2: {load.OutcomeUnknown, load.AlreadyClaimed}},
			want:    func(f *findings) *finding { return f.lost },
		},
		"the coupon itself is lost": {gone: true, want: func(f *findings) *finding { return f.lost }},
		"granted twice": {
			answers: map[int][]load.Answer{1: {load.Claimed}},
			want:    func(f *findings) *finding { return f.doubled },
		},
		"stored twice": {change: func(s *stored) { s.add("u1") }, want: func(f *findings) *finding { return f.doubled }},
		"oversold": {
			answers: map[int][]load.Answer{2: {load.Claimed}, 3: {load.Claimed}},
			change:  func(s *stored) { s.add("u2"); s.add("u3") },
			want:    func(f *findings) *finding { return f.oversold },
		},
		"stored after a refusal": {
			answers: map[int][]load.Answer{2: {load.Overloaded}},
			change:  func(s *stored) { s.add("u2") },
			want:    func(f *findings) *finding { return f.stray },
		},
		"stored for a stranger": {change: func(s *stored) { s.add("mallory") }, want: func(f *findings) *finding { return f.stray }},
		"sold out, and has it": {
			answers: map[int][]load.Answer{2: {load.Cut, load.OutOfStock}},
			change:  func(s *stored) { s.add("u2") },
			want:    func(f *findings) *finding { return f.contradicted },
		},
		"the sum is wrong":        {change: func(s *stored) { s.remaining = 2 }, want: func(f *findings) *finding { return f.contradicted }},
		"a number is missing":     {change: func(s *stored) { s.numbers[1] = 3 }, want: func(f *findings) *finding { return f.contradicted }},
		"the amount is another's": {change: func(s *stored) { s.amount, s.remaining = 4, 2 }, want: func(f *findings) *finding { return f.contradicted }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLedger("c", 3, 4)
			l.createdBy(couponmodel.Created)
			l.claimedBy(0, load.Claimed)
			l.claimedBy(1, load.Claimed)
			for user, answers := range test.answers {
				for _, a := range answers {
					l.claimedBy(user, a)
				}
			}
			s := right
			s.numbers, s.users = slices.Clone(s.numbers), slices.Clone(s.users)
			if test.change != nil {
				test.change(&s)
			}
			all := map[string]*stored{"c": &s}
			if test.gone {
				all = nil
			}
			f := newFindings()
			compareAll([]*ledger{l}, all, f)
			if test.want == nil {
				if !f.clean() {
					t.Errorf("found %+v", found(f))
				}
				return
			}
			if test.want(f).times() == 0 {
				t.Errorf("found %v only", found(f))
			}
		})
	}

	f := newFindings()
	refused := newLedger("c", 3, 4)
	refused.createdBy(load.Unavailable)
	compareAll([]*ledger{refused}, map[string]*stored{"c": {name: "c", amount: 3, remaining: 3}}, f)
	compareAll(nil, map[string]*stored{"d": {name: "d", amount: 3, remaining: 3}}, f)
	if f.stray.times() != 2 {
		t.Errorf("coupons that nobody made: found %v", found(f))
	}
}

// add is one claim more.
func (s *stored) add(user string) {
	s.numbers, s.users, s.remaining = append(s.numbers, int32(len(s.users)+1)), append(s.users, user), s.remaining-1
}

func found(f *findings) (all []string) {
	for _, one := range f.all() {
		all = append(all, one.examples...)
	}
	return all
}

// An answer is excused by a fault that may bring it, at the time of that fault only.
func TestWeather(t *testing.T) {
	t.Parallel()
	w := &weather{}
	storm := &fault{name: "storm", may: []load.Answer{load.Unavailable}}
	old := &window{faults: []*fault{{name: "calm"}}, begin: at(1000), end: at(2000)}
	w.windows = []*window{old, {faults: []*fault{storm}, begin: at(3000), end: at(4000)}}
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
		if got := w.excuses(test.answer, at(test.from), at(test.end)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// The seed decides all faults, every kind comes before any comes again, and two at once are of different places.
func TestDeck(t *testing.T) {
	t.Parallel()
	deal := func(seed uint64) (blows []blow) {
		r := &run{options: options{seed: seed}}
		d := &deck{faults: allFaults(), random: r.random(faultStream, 0)}
		for range 60 {
			blows = append(blows, d.next())
		}
		return blows
	}
	one, again, other := deal(1), deal(1), deal(2)
	name := func(blows []blow) (all []string) {
		for _, b := range blows {
			all = append(all, names(b.faults))
			if len(b.faults) > 1 && b.faults[0].place == b.faults[1].place {
				t.Errorf("two faults of one place: %s", names(b.faults))
			}
		}
		return all
	}
	if !slices.Equal(name(one), name(again)) || one[7].pause != again[7].pause || !slices.Equal(one[7].seeds, again[7].seeds) {
		t.Error("the same seed dealt other faults")
	}
	if slices.Equal(name(one), name(other)) {
		t.Error("another seed dealt the same faults")
	}
	first := strings.Join(name(one[:len(allFaults())]), " + ")
	for _, f := range allFaults() {
		if !strings.Contains(first, f.name) {
			t.Errorf("%s has not come among the first %d", f.name, len(allFaults()))
		}
		if f.does == "" || f.because == "" {
			t.Errorf("%s does not say what it does, or why", f.name)
		}
	}
}

// The report says CLEAN only when nothing was found, and shows what was.
func TestReport(t *testing.T) {
	t.Parallel()
	r := newRun(options{duration: time.Minute, seed: 7}, &bytes.Buffer{})
	r.world = &world{}
	if report := r.report(); !strings.HasPrefix(report, "# Proof: CLEAN\n") || !strings.Contains(report, "DURATION=1m0s SEED=7") {
		t.Error(report)
	}
	for _, one := range r.found.all() {
		one.note("an example of %s", one.what)
		report := r.report()
		if !strings.HasPrefix(report, "# Proof: NOT CLEAN\n") || !strings.Contains(report, "an example of "+one.what) || !strings.Contains(report, "| "+one.what+" | 1 |") {
			t.Errorf("%s: %s", one.what, report)
		}
	}
}

// An answer that no fault explains is found, and one that says surely not is only counted.
func TestAnswersOutOfAClearSky(t *testing.T) {
	t.Parallel()
	for answer, want := range map[load.Answer]int{
		load.Claimed: 0, load.CouponNotFound: 0, load.Unavailable: 0, load.Overloaded: 0,
		load.OutcomeUnknown: 1, load.Cut: 1, load.TimedOut: 1, load.Malformed: 1, load.NotSent: 1,
		{Status: 500, Code: "INTERNAL"}: 1, {Status: 400, Code: "INVALID_REQUEST"}: 1,
	} {
		r := newRun(options{}, &bytes.Buffer{})
		r.answered(answer, load.Response{Sent: at(1), Answered: at(2)}, nil, false)
		if got := r.found.unexplained.times(); got != want {
			t.Errorf("%v: found %d times, want %d", answer, got, want)
		}
	}
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-duration", "0s"}, {"-every", "0s"}, {"-report", ""}, {"-bogus"}, {"word"}} {
		var stderr bytes.Buffer
		if code := prove(t.Context(), args, &bytes.Buffer{}, &stderr); code != misused || stderr.Len() == 0 {
			t.Errorf("%v: exit code %d, %q", args, code, stderr.String())
		}
	}
}
