package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"scalable-coupon-system/bench/load"
)

// showSale runs a sale on a fake service and returns the progress that is shown in a terminal of
// this width.
func showSale(ctx context.Context, t *testing.T, f *fake, o options, width int) (s *sale, shown string) {
	t.Helper()
	o.URL, o.Timeout = f.start(t), time.Minute
	s = newSale(o)
	if err := s.options.setAddress(); err != nil {
		t.Fatal(err)
	}
	f.Set(s.coupon, o.Stock)
	if err := s.start(ctx); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s.showProgress(ctx, &out, func() int { return width })
	return s, out.String()
}

func TestSale_showProgress(t *testing.T) {
	o := options{Users: 2000, Stock: 20, Connections: 4, Rate: 5000}
	s, shown := showSale(t.Context(), t, &fake{}, o, 80)
	for _, want := range []string{"2,000 users (5 % twice) for 20 coupons · 4 connections · 5,000 per second", "claims/s", "p99.9", "201 claimed", "400 out of stock"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q was never displayed: %q", want, shown)
		}
	}
	// Each frame begins where the one before does, and the summary where the last one does.
	height := strings.Count(s.view(80), "\n") + 1
	frames := strings.Split(shown, "\r"+ansi.CursorUp(height))
	if last := frames[len(frames)-1]; len(frames) < 3 || last != ansi.EraseScreenBelow || strings.Count(frames[1], "\n") != height {
		t.Errorf("%d frames: %q", len(frames), shown)
	}
	if a := s.series.all.Answers; a[load.Claimed] != 20 || a[load.Claimed]+a[load.AlreadyClaimed]+a[load.OutOfStock] != 2100 {
		t.Errorf("%v, want 20 claimed of 2100", a)
	}
}

func TestSale_showProgress_interrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	f := &fake{onClaim: func(c fakeClaim) bool {
		if c.n == 10 {
			stop()
			time.Sleep(5 * tick)
		}
		return false
	}}
	if _, shown := showSale(ctx, t, f, options{Users: 100, Stock: 20, Connections: 1}, 80); !strings.Contains(shown, "waiting for the last answers") {
		t.Errorf("%q", shown)
	}
}

func TestSale_showProgress_lines(t *testing.T) {
	_, shown := showSale(t.Context(), t, &fake{}, options{Users: 1500, Stock: 20, Connections: 4, Rate: 1000}, 0)
	lines := strings.Split(strings.TrimSpace(shown), "\n")
	pattern := regexp.MustCompile(` 100 % .* p50 .* 1\d{3} × 400 OUT_OF_STOCK, .*\b20 × 201\b`)
	if len(lines) < 2 || !pattern.MatchString(lines[len(lines)-1]) {
		t.Errorf("%s", shown)
	}
}

func TestSale_view(t *testing.T) {
	s := newSale(options{Users: 1000, Stock: 100, Connections: 8})
	if empty := s.view(80); !strings.Contains(empty, "0 of 1,050") {
		t.Errorf("%s", empty)
	}
	s.finished.Store(525)
	s.series.add(load.Report{Elapsed: tick, Answers: load.Answers{load.Claimed: 100, load.OutOfStock: 50}})
	s.series.add(load.Report{Elapsed: tick, Answers: load.Answers{load.OutOfStock: 300, load.Overloaded: 1}})
	const want = `
  1,000 users (5 % twice) for 100 coupons · 8 connections · all at once

  ████████████████████░░░░░░░░░░░░░░░░░░░░░  50 %  525 of 1,050  0.2 s

  claims/s    2,255  ▄█
  latency   p50 –   p99 –   p99.9 –

  201 claimed                 100  ▇▇▇▇▇▇▇▇
  409 already claimed           0
  400 out of stock            350  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
  503 OVERLOADED                1  ▇`
	if got := regexp.MustCompile(`(?m) +$`).ReplaceAllString(ansi.Strip(s.view(72)), ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, width := range []int{minColumns, 72, 500} {
		if w := lipgloss.Width(s.view(width)); w > min(width, 100) {
			t.Errorf("%d columns wide on a terminal with %d", w, width)
		}
	}
}

// A series stays short however long the sale is, and no answer is lost.
func TestSeries_add(t *testing.T) {
	s := series{interval: tick}
	const ticks = 5000
	for i := range ticks {
		s.add(load.Report{Elapsed: tick, Answers: load.Answers{load.Claimed: 1, load.OutOfStock: i}})
		if len(s.points) > maxPoints {
			t.Fatalf("%d points after %d ticks", len(s.points), i+1)
		}
	}
	var all load.Report
	for i, p := range s.points {
		if i < len(s.points)-1 && p.Elapsed != s.interval {
			t.Errorf("point %d covers %v, want %v", i, p.Elapsed, s.interval)
		}
		all.Add(p)
	}
	for _, r := range []load.Report{all, s.all} {
		if r.Answers[load.Claimed] != ticks || r.Answers[load.OutOfStock] != ticks*(ticks-1)/2 || r.Elapsed != ticks*tick {
			t.Errorf("%v in %v", r.Answers, r.Elapsed)
		}
	}
	if rates := s.rates(10); len(rates) > 10 || len(rates) < 5 || rates[0] >= rates[len(rates)-1] {
		t.Errorf("rates %v", rates)
	}
	c := s.chart("a title", []chartLine{{"a line", "#000000", rate}})
	if len(c.XAxis.Labels) != len(s.points) || c.XAxis.Labels[0] != "0.0 s" {
		t.Errorf("labels %v for %d points", c.XAxis.Labels, len(s.points))
	}
	if second := s.lastSecond(); second.Elapsed < time.Second || second.Answers[load.Claimed] != int(second.Elapsed/tick) {
		t.Errorf("the last %v: %+v", second.Elapsed, second.Answers)
	}
}

// A tick that is too short for a rate is merged with the next one.
func TestSeries_add_earlyTick(t *testing.T) {
	s := series{interval: tick}
	s.add(load.Report{Elapsed: 195 * time.Millisecond, Answers: load.Answers{load.Claimed: 195}})
	s.add(load.Report{Elapsed: 5 * time.Millisecond, Answers: load.Answers{load.Claimed: 100}})
	s.add(load.Report{Elapsed: 95 * time.Millisecond, Answers: load.Answers{load.Claimed: 100}})
	if rates := s.rates(10); len(rates) != 2 || rates[0] != 1000 || rates[1] != 2000 || s.all.Total() != 395 {
		t.Errorf("rates %v, %v", rates, s.all.Answers)
	}
}

func TestSparkline(t *testing.T) {
	for want, values := range map[string][]float64{"": nil, "▁▁": {0, 0}, "▁▅█": {0, 5, 9}} {
		if got := sparkline(values); got != want {
			t.Errorf("%v: %s, want %s", values, got, want)
		}
	}
}

func TestSale_writeChart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sale.svg")
	code, out, errs := runCommand(t, "--users", "300", "--stock", "1000", "--plot", file, (&fake{}).start(t))
	if code != exitPass || errs != "" {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(svg, new(struct{})); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"300 users (5 % twice) for 1,000 coupons · 128 connections · all at once", "claims per second, by answer", "201 claimed", "409 already claimed", "latency, ms", "p99.9"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the chart lacks %q:\n%s", want, svg)
		}
	}
	if strings.Contains(string(svg), "400 out of stock") {
		t.Error("the chart has a line for an answer that never came")
	}
}
