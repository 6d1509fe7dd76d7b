package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"

	"scalable-coupon-system/bench/load"
)

// startSale starts a sale on a fake service.
func startSale(t *testing.T, f *fake, o options) (s *sale, stop func()) {
	t.Helper()
	var err error
	if o.address, err = address(t.Context(), f.start(t), false); err != nil {
		t.Fatal(err)
	}
	o.coupon, o.timeout = "sale", time.Minute
	if err := (load.Service{Address: o.address, Timeout: time.Minute}).Create(t.Context(), o.coupon, o.stock); err != nil {
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

func TestSale_drawProgress(t *testing.T) {
	s, stop := startSale(t, &fake{}, options{users: 2000, stock: 20, connections: 4, rate: 5000})
	keys, _ := io.Pipe()
	var out bytes.Buffer
	if err := s.drawProgress(keys, &out, colorprofile.ANSI, stop); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2,000 users for 20 coupons · 4 connections · 5,000 per second", "claims/s", "p99.9", "201 claimed", "400 out of stock"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was never displayed: %q", want, out.String())
		}
	}
	if n := s.series.total; n[claimed] != 20 || n[outOfStock] != 1980 {
		t.Errorf("total %v, want 20 claimed and 1980 out of stock", n)
	}
}

func TestSale_drawProgress_interrupted(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{})
	s, stop := startSale(t, &fake{onClaim: func(f *fake, _ http.ResponseWriter, n int, _ *fakeCoupon, _ string) bool {
		if n == 10 {
			f.mu.Unlock()
			close(held)
			<-hold
			f.mu.Lock()
		}
		return false
	}}, options{users: 100, stock: 20, connections: 1})
	t.Cleanup(func() { close(hold) })

	keys, press := io.Pipe()
	go func() {
		<-held
		_, _ = press.Write([]byte("\x03")) // Ctrl-C
		time.Sleep(300 * time.Millisecond)
		_, _ = press.Write([]byte("\x03"))
	}()
	var out bytes.Buffer
	if err := s.drawProgress(keys, &out, colorprofile.ANSI, stop); !errors.Is(err, errKilled) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out.String(), "waiting for the last answers") {
		t.Errorf("%q", out.String())
	}
}

func TestSale_printProgress(t *testing.T) {
	s, _ := startSale(t, &fake{}, options{users: 1500, stock: 20, connections: 4, rate: 1000})
	var out bytes.Buffer
	s.printProgress(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) < 2 || !strings.Contains(lines[len(lines)-1], " 100 % ") || !strings.Contains(lines[len(lines)-1], "201 20   409 0   400 1,480   503 0   none 0   p50 ") {
		t.Errorf("%s", out.String())
	}
}

func TestIsInteractive(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if isInteractive(&bytes.Buffer{}, nil) || isInteractive(file, nil) {
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

func TestProgress_view(t *testing.T) {
	var s series
	s.add(newReport(100*time.Millisecond, map[load.Answer]int{load.Claimed: 100, load.OutOfStock: 50}))
	s.add(newReport(100*time.Millisecond, map[load.Answer]int{load.OutOfStock: 300, load.Overloaded: 1}))
	o := options{users: 1000, stock: 100, connections: 8, repeats: 5}
	const want = `
  1,000 users (5 % twice) for 100 coupons · 8 connections · all at once

  ████████████████████░░░░░░░░░░░░░░░░░░░░░  50 %  525 of 1,050  0.2 s

  claims/s    2,255  ▄█
  latency   p50 –   p99 –   p99.9 –

  201 claimed               100  ▇▇▇▇▇▇▇▇
  409 already claimed         0
  400 out of stock          350  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
  503 retried                 1  ▇`
	got := progress{requests: 1050, finished: 525, series: &s}.view(&o, 72)
	if got := regexp.MustCompile(`(?m) +$`).ReplaceAllString(ansi.Strip(got), ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, width := range []int{1, 40, 72, 500} {
		view := progress{requests: 1050, finished: 525, series: &s}.view(&o, width)
		if w := lipgloss.Width(view); w > max(40, min(width, 100)) {
			t.Errorf("%d columns wide on a terminal with %d", w, width)
		}
	}
	if empty := (progress{requests: 10, series: &series{}}).view(&o, 80); !strings.Contains(empty, "0 of 10") {
		t.Errorf("%s", empty)
	}
}

// A series stays short however long the sale is, and no answer is lost.
func TestSeries_add(t *testing.T) {
	var s series
	const ticks = 5000
	for i := range ticks {
		s.add(newReport(tick, map[load.Answer]int{load.Claimed: 1, load.OutOfStock: i}))
		if len(s.points) > maxPoints {
			t.Fatalf("%d points after %d ticks", len(s.points), i+1)
		}
	}
	n, elapsed := [kinds]int{}, time.Duration(0)
	for i, p := range s.points {
		k := countByKind(p.Claims)
		n[claimed] += k[claimed]
		n[outOfStock] += k[outOfStock]
		elapsed += p.Elapsed
		if want := time.Duration(s.ticksPerPoint) * tick; i < len(s.points)-1 && p.Elapsed != want {
			t.Errorf("point %d covers %v, want %v", i, p.Elapsed, want)
		}
	}
	if n[claimed] != ticks || n[outOfStock] != ticks*(ticks-1)/2 || elapsed != ticks*tick || s.elapsed != elapsed || s.total != n {
		t.Errorf("%v in %v, total %v in %v", n, elapsed, s.total, s.elapsed)
	}
	if second := s.lastSecond(); second.Claims.Count(load.Claimed) != 10 || second.Claims.Count(load.OutOfStock) != 10*(ticks-1)-45 {
		t.Errorf("the last second: %+v", second.Claims.Answers)
	}
	rates := s.rates(10)
	if len(rates) > 10 || len(rates) < 5 || rates[0] >= rates[len(rates)-1] {
		t.Errorf("rates %v", rates)
	}
}

func TestSeries_add_earlyTick(t *testing.T) {
	var s series
	s.add(newReport(195*time.Millisecond, map[load.Answer]int{load.Claimed: 195}))
	s.add(newReport(5*time.Millisecond, map[load.Answer]int{load.Claimed: 105}))
	s.add(newReport(100*time.Millisecond, map[load.Answer]int{load.Claimed: 100}))
	if rates := s.rates(10); len(rates) != 2 || rates[0] != 1500 || rates[1] != 1000 || s.total[claimed] != 400 {
		t.Errorf("rates %v, total %v", rates, s.total)
	}
}

func TestSparkline(t *testing.T) {
	for want, values := range map[string][]float64{"": nil, "▁▁": {0, 0}, "▁▅█": {0, 5, 9}} {
		if got := sparkline(values); got != want {
			t.Errorf("%v: %s, want %s", values, got, want)
		}
	}
}

func TestFormatLatency(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 123456 * time.Nanosecond: "0.12 ms", 9990 * time.Microsecond: "9.99 ms", 9996 * time.Microsecond: "10.0 ms",
		99940 * time.Microsecond: "99.9 ms", 123 * time.Millisecond: "123 ms", 1500 * time.Millisecond: "1.50 s",
	} {
		if got := formatLatency(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestWriteChart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sale.svg")
	code, out, errs := runCommand(t, "--users", "300", "--stock", "20", "--plot", file, (&fake{}).start(t))
	if code != exitPass || errs != "" {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for decoder := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			texts = append(texts, string(text))
		}
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"300 users (5 % twice) for 20 coupons · 128 connections · all at once", "claims per second, by answer", "201 claimed", "400 out of stock", "latency, ms", "p99.9"} {
		if !strings.Contains(all, want) {
			t.Errorf("the chart lacks %q:\n%s", want, all)
		}
	}
	if strings.Contains(all, "503") {
		t.Error("the chart has a line for 503, which was never answered")
	}
}
