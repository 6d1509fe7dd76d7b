//go:build browser

// Package browsertest opens the docs page of a running service in a real browser. It has a build tag, because a browser is more than
// `make test` may ask of a new machine: make test-browser.
package browsertest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience bounds all that one window does. It is long: a laden machine is no reason for a test to fail.
const patience = 3 * time.Minute

// A developer opens /docs, sees every operation, and creates, claims and reads with "Try it out", in a wide window and on a
// telephone; the page asks nobody but the service, and has nothing to complain of.
func TestDocsInABrowser(t *testing.T) {
	binary := build(t)
	for _, window := range []struct {
		name          string
		width, height int64
	}{
		{"wide", 1280, 900},
		{"narrow", 390, 844},
	} {
		t.Run(window.name, func(t *testing.T) {
			service := start(t, binary, pgtest.New(t).URL)
			w := open(t, window.width, window.height)
			w.do(chromedp.Navigate(service + "/docs"))

			w.until(`document.querySelectorAll(".opblock").length > 0`)
			w.seesEveryOperation()
			w.seesEveryCode()
			w.fits("the page")
			w.picture(window.name + "-top")

			// As the examples stand: they are of one coupon and one user.
			w.expand("createCoupon")
			if text := w.execute("createCoupon", 201); !strings.Contains(text, "/api/coupons/summer%20sale") {
				t.Errorf("the answer to the creation shows no Location: %s", text)
			}
			w.picture(window.name + "-create")
			w.fold("createCoupon")

			w.expand("claimCoupon")
			w.execute("claimCoupon", 201)
			w.quiet()
			if text := w.execute("claimCoupon", 409); !strings.Contains(text, "ALREADY_CLAIMED") {
				t.Errorf("the answer to the second claim: %s", text)
			}
			w.complains("409 (Conflict)") // what Chromium says of every status from 400 on
			w.picture(window.name + "-claim")
			w.fold("claimCoupon")

			w.expand("getCoupon")
			text := w.execute("getCoupon", 200)
			for _, wanted := range []string{`"remaining_amount": 4`, `"ada"`} {
				if !strings.Contains(text, wanted) {
					t.Errorf("the coupon is shown without %s: %s", wanted, text)
				}
			}
			w.picture(window.name + "-get")
			w.fits("the answer")
			w.quiet()
			w.askedNobodyElse(service)
		})
	}
}

// build makes coupond, as a user would.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "coupond")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/coupond").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// start runs coupond serve until the test ends, and returns where it is.
func start(t *testing.T, binary, database string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "serve")
	cmd.Env = []string{"DATABASE_URL=" + database, "LISTEN_ADDR=127.0.0.1:0", "LOG_FORMAT=json"}
	cmd.Stderr = log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // t.Context ends before
		_ = cmd.Wait()
		_ = log.Close()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, rest, found := strings.Cut(string(text), `"address":"127.0.0.1:`); found && strings.Contains(string(text), "ready for claims") {
			port, _, _ := strings.Cut(rest, `"`)
			return "http://127.0.0.1:" + port
		}
		if time.Now().After(deadline) {
			t.Fatalf("the service is not ready: %s", text)
		}
	}
}

// window is a browser with one page, and what was heard from it.
type window struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	said     []chromedp.ConsoleMessage
	requests []string
}

// open starts Chromium with one empty page. There is no test without a browser: when there is none, it fails.
func open(t *testing.T, width, height int64) *window {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		// What the browser itself would like to ask of the internet finds no address.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.UserDataDir(t.TempDir()),
	)
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // root has none
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
	})

	w := &window{t: t, ctx: ctx}
	w.do(chromedp.EmulateViewport(width, height))
	requests := chromedp.Events(ctx, network.RequestWillBeSent)
	console := chromedp.Console(ctx)
	go func() {
		for event, err := range requests {
			if err != nil {
				return
			}
			w.mu.Lock()
			w.requests = append(w.requests, event.Request.URL)
			w.mu.Unlock()
		}
	}()
	go func() {
		for message, err := range console {
			if err != nil {
				return
			}
			w.mu.Lock()
			w.said = append(w.said, message)
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *window) do(steps ...chromedp.Action[chromedp.Void]) {
	w.t.Helper()
	if err := chromedp.Do(w.ctx, steps...); err != nil {
		w.t.Fatal(err)
	}
}

// eval runs JavaScript in the page. It comes from outside, so that the page's policy does not forbid it.
func eval[T any](w *window, script string) T {
	w.t.Helper()
	value, err := chromedp.Run(w.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		w.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// until waits for a condition in the page. chromedp's own Poll needs eval in the page, which the policy forbids.
func (w *window) until(condition string) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !eval[bool](w, condition); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.picture("failed")
			w.t.Fatalf("never came true: %s\n%s", condition, eval[string](w, `document.body.innerText`))
		}
	}
}

// seesEveryOperation holds the operations that the page shows against those of openapi.yaml.
func (w *window) seesEveryOperation() {
	w.t.Helper()
	shown := map[string]bool{}
	for _, id := range eval[[]string](w, `[...document.querySelectorAll(".opblock")].map(o => o.id)`) {
		shown[id] = true
	}
	operations := 0
	for _, item := range apitest.Contract(w.t).Paths.Map() {
		for _, operation := range item.Operations() {
			operations++
			if id := block(operation.Tags[0], operation.OperationID); !shown[id] {
				w.t.Errorf("the page does not show %s", id)
			}
		}
	}
	if operations != len(shown) {
		w.t.Errorf("the page shows %d operations, openapi.yaml has %d", len(shown), operations)
	}
}

// seesEveryCode wants the paragraph of each error code under its own heading, in a section that unfolds.
func (w *window) seesEveryCode() {
	w.t.Helper()
	w.until(`document.querySelectorAll(".info details > h3").length > 0`)
	shown := eval[[]string](w, `[...document.querySelectorAll(".info details > h3")]
		.filter(h => h.nextElementSibling.tagName === "P").map(h => h.textContent)`)
	for _, code := range api.Codes() {
		if !slices.Contains(shown, string(code)) {
			w.t.Errorf("the page does not explain %s, only %v", code, shown)
		}
	}
}

// block is the id of the element that shows an operation.
func block(tag, operation string) string { return "operations-" + tag + "-" + operation }

// tagCoupons is the section of what is tried out.
const tagCoupons = "Coupons"

func within(operation, selector string) chromedp.CSS {
	return chromedp.CSS("#" + block(tagCoupons, operation) + " " + selector)
}

// expand opens an operation, and lets it be tried out.
func (w *window) expand(operation string) {
	w.t.Helper()
	w.do(
		chromedp.Click(within(operation, ".opblock-summary-control")),
		chromedp.Click(within(operation, ".try-out__btn"), chromedp.NodeVisible),
	)
}

func (w *window) fold(operation string) {
	w.t.Helper()
	w.do(
		chromedp.Click(within(operation, ".opblock-summary-control")),
		chromedp.WaitNotPresent(within(operation, ".execute")),
	)
}

// execute sends the request, and returns what the page then shows of the answer, which must have this status.
func (w *window) execute(operation string, status int) string {
	w.t.Helper()
	answer := fmt.Sprintf(`document.querySelector("#%s .live-responses-table tbody")?.innerText ?? ""`, block(tagCoupons, operation))
	w.do(chromedp.Click(within(operation, ".execute"), chromedp.NodeVisible))
	w.until(fmt.Sprintf(`(%s).trim().startsWith("%d")`, answer, status))
	w.do(chromedp.ScrollIntoView(within(operation, ".live-responses-table")))
	return eval[string](w, answer)
}

// fits fails when the page is wider than the window.
func (w *window) fits(what string) {
	w.t.Helper()
	if over := eval[int](w, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
		w.t.Errorf("%s is %d pixels wider than the window: %q", what, over, eval[[]string](w, `[...document.querySelectorAll("body *")]
			.filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
			.map(e => e.tagName + "." + e.className)`))
	}
}

// picture keeps what the window shows in the folder COUPON_PICTURES, if that is set: for somebody to look at.
func (w *window) picture(name string) {
	w.t.Helper()
	folder := os.Getenv("COUPON_PICTURES")
	if folder == "" {
		return
	}
	picture, err := chromedp.Run(w.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "docs-"+name+".png"), picture, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// complaints are the errors and warnings of the console until now; they are forgotten.
func (w *window) complaints() []string {
	w.t.Helper()
	// Whatever the page has said before is in order before this one.
	w.mu.Lock()
	before := len(w.said)
	w.mu.Unlock()
	mark := fmt.Sprintf("mark %d", time.Now().UnixNano())
	eval[chromedp.Void](w, fmt.Sprintf("console.debug(%q)", mark))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		for i := before; i < len(w.said); i++ {
			if w.said[i].Text != mark {
				continue
			}
			var errors []string
			for _, message := range w.said[:i] {
				switch message.Type {
				case chromedp.ConsoleError, chromedp.ConsoleException, chromedp.ConsoleWarning:
					errors = append(errors, fmt.Sprintf("%s (%s, %s)", message, message.Source, message.URL))
				}
			}
			w.said = w.said[i+1:]
			w.mu.Unlock()
			return errors
		}
		w.mu.Unlock()
		if time.Now().After(deadline) {
			w.t.Fatal("the console is not heard")
		}
	}
}

// quiet fails when the console has an error, an exception, a warning, a breach of the page's policy.
func (w *window) quiet() {
	w.t.Helper()
	for _, complaint := range w.complaints() {
		w.t.Error(complaint)
	}
}

// complains fails unless the console has exactly one complaint, with this text.
func (w *window) complains(text string) {
	w.t.Helper()
	if got := w.complaints(); len(got) != 1 || !strings.Contains(got[0], text) {
		w.t.Errorf("the console complains %q, want one with %q", got, text)
	}
}

// askedNobodyElse holds every request of the page against the service's address.
func (w *window) askedNobodyElse(service string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	paths := map[string]bool{}
	for _, request := range w.requests {
		address, err := url.Parse(request)
		if err != nil {
			w.t.Fatal(err)
		}
		switch {
		case address.Scheme == "data": // pictures in the style sheet
		case address.Scheme+"://"+address.Host != service:
			w.t.Errorf("the page asked %s", request)
		default:
			paths[address.Path] = true
		}
	}
	for _, path := range []string{"/docs", "/docs/swagger-ui-bundle.js", "/openapi.yaml", "/api/coupons", "/api/coupons/claim", "/api/coupons/summer sale"} {
		if !paths[path] {
			w.t.Errorf("no request for %s was heard of, only %v", path, paths)
		}
	}
}
