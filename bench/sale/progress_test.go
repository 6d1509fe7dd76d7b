package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/wait"
)

// startSale starts a sale on a fake service.
func startSale(t *testing.T, f *fake, args ...string) (s *sale, stop func()) {
	t.Helper()
	o, err := parse(t.Context(), append(args, "--repeats=0", f.start(t)), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := (load.Service{Address: o.address, Timeout: time.Minute}).Create(t.Context(), o.Coupon, o.Stock); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	s = newSale(o)
	if err := s.start(ctx); err != nil {
		t.Fatal(err)
	}
	return s, stop
}

// output is a buffer that may be read while it is written.
type output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(p)
}

func (o *output) contains(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(o.buffer.String(), text)
}

func TestSale_drawProgress(t *testing.T) {
	s, stop := startSale(t, &fake{}, "--users=2000", "--stock=20", "--connections=4", "--rate=5000")
	keys, _ := io.Pipe()
	var out output
	if err := s.drawProgress(keys, &out, colorprofile.ANSI, stop); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2,000 users for 20 coupons · 4 connections · 5,000 per second", "claims/s", "p99.9", "201 claimed", "400 out of stock"} {
		if !out.contains(want) {
			t.Errorf("%q was never displayed: %q", want, out.buffer.String())
		}
	}
	if claims := s.series.all.Claims; claims.Count(load.Claimed) != 20 || claims.Count(load.OutOfStock) != 1980 {
		t.Errorf("%v, want 20 claimed and 1980 out of stock", claims.Answers)
	}
}

func TestSale_drawProgress_interrupted(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	s, stop := startSale(t, &fake{onClaim: func(c fakeClaim) bool {
		if c.n == 10 {
			close(held)
			<-release
		}
		return false
	}}, "--users=100", "--connections=1")
	t.Cleanup(func() { close(release) })

	keys, press := io.Pipe()
	var out output
	result := make(chan error)
	go func() { result <- s.drawProgress(keys, &out, colorprofile.ANSI, stop) }()
	<-held
	_, _ = press.Write([]byte("\x03")) // Ctrl-C
	wait.For(t, "the request to press it again", func() bool { return out.contains("waiting for the last answers") })
	_, _ = press.Write([]byte("\x03"))
	if err := <-result; !errors.Is(err, errKilled) {
		t.Errorf("got %v", err)
	}
}

func TestSale_printProgress(t *testing.T) {
	s, _ := startSale(t, &fake{}, "--users=1500", "--stock=20", "--connections=4", "--rate=1000")
	var out bytes.Buffer
	s.printProgress(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := lines[len(lines)-1]; len(lines) < 2 || !strings.Contains(last, " 100 % ") || !strings.Contains(last, "201 20   409 0   400 1,480   503 0   none 0   p50 ") {
		t.Errorf("%s", out.String())
	}
}

func TestIsInteractive(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if isInteractive(&bytes.Buffer{}) || isInteractive(file) {
		t.Error("a buffer or a file is taken for a terminal")
	}
}

// newReport returns a report with these counts of answers.
func newReport(elapsed time.Duration, counts map[load.Answer]int) load.Report {
	r := load.Report{Elapsed: elapsed}
	for a, n := range counts {
		r.Claims.Answers = append(r.Claims.Answers, load.Count{Answer: a, Times: n})
	}
	return r
}

func TestSale_view(t *testing.T) {
	s := newSale(options{Users: 1000, Stock: 100, Connections: 8, Repeats: 5})
	if empty := s.view(80); !strings.Contains(empty, "0 of 1,050") {
		t.Errorf("%s", empty)
	}
	s.finished.Store(525)
	s.series.add(newReport(tick, map[load.Answer]int{load.Claimed: 100, load.OutOfStock: 50}))
	s.series.add(newReport(tick, map[load.Answer]int{load.OutOfStock: 300, load.Overloaded: 1}))
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
	for _, width := range []int{1, 40, 72, 500} {
		if w := lipgloss.Width(s.view(width)); w > max(40, min(width, 100)) {
			t.Errorf("%d columns wide on a terminal with %d", w, width)
		}
	}
}

// A series stays short however long the sale is, and no answer is lost.
func TestSeries_add(t *testing.T) {
	s := series{interval: tick}
	const ticks = 5000
	for i := range ticks {
		s.add(newReport(tick, map[load.Answer]int{load.Claimed: 1, load.OutOfStock: i}))
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
		if r.Claims.Count(load.Claimed) != ticks || r.Claims.Count(load.OutOfStock) != ticks*(ticks-1)/2 || r.Elapsed != ticks*tick {
			t.Errorf("%v in %v", r.Claims.Answers, r.Elapsed)
		}
	}
	if rates := s.rates(10); len(rates) > 10 || len(rates) < 5 || rates[0] >= rates[len(rates)-1] {
		t.Errorf("rates %v", rates)
	}
	c := s.chart("a title", []chartLine{{"a line", "#000000", rate}}, nil)
	if len(c.XAxis.Labels) != len(s.points) || c.XAxis.Labels[0] != "0.0 s" {
		t.Errorf("labels %v for %d points", c.XAxis.Labels, len(s.points))
	}
	if second := s.lastSecond(); second.Elapsed < time.Second || second.Claims.Count(load.Claimed) != int(second.Elapsed/tick) {
		t.Errorf("the last %v: %+v", second.Elapsed, second.Claims.Answers)
	}
}

// A tick that is too short for a rate is merged with the next one.
func TestSeries_add_earlyTick(t *testing.T) {
	s := series{interval: tick}
	s.add(newReport(195*time.Millisecond, map[load.Answer]int{load.Claimed: 195}))
	s.add(newReport(5*time.Millisecond, map[load.Answer]int{load.Claimed: 100}))
	s.add(newReport(95*time.Millisecond, map[load.Answer]int{load.Claimed: 100}))
	if rates := s.rates(10); len(rates) != 2 || rates[0] != 1000 || rates[1] != 2000 || s.all.Claims.Total() != 395 {
		t.Errorf("rates %v, %v", rates, s.all.Claims.Answers)
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
	code, out, errs := runCommand(t, "--users", "300", "--stock", "20", "--repeats", "0", "--plot", file, (&fake{}).start(t))
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
	for _, want := range []string{"300 users for 20 coupons · 128 connections · all at once", "claims per second, by answer", "201 claimed", "400 out of stock", "latency, ms", "p99.9"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("the chart lacks %q:\n%s", want, svg)
		}
	}
	if strings.Contains(string(svg), "409 already claimed") {
		t.Error("the chart has a line for an answer that never came")
	}
}
