//go:build browser

// Package browsertest tests the docs page in Chromium. It has a build tag
// because `make test` must not require a browser; run it with `.ci/run browser`.
package browsertest

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
)

// browserTimeout limits everything that is done in one browser. It is long, so that the test also
// passes on a busy machine.
const browserTimeout = 3 * time.Minute

// The page /docs shows every operation. "Try it out" creates, claims and reads a coupon, in a wide
// window and in that of a phone, also behind a path prefix that a proxy removes. The page sends
// requests only to the service and below the prefix, and the console has no errors.
func TestDocsPage(t *testing.T) {
	for _, window := range []struct {
		name          string
		width, height int64
		prefix        string
	}{
		{"wide", 1280, 900, ""},
		{"narrow", 390, 844, "/shop/eu"},
	} {
		t.Run(window.name, func(t *testing.T) {
			service := start(t, window.prefix)
			b := openBrowser(t, window.width, window.height)
			b.do(chromedp.Navigate(service + window.prefix + "/docs"))

			b.waitFor(`document.querySelectorAll(".opblock").length > 0`)
			b.checkOperations()
			b.checkCodes()
			b.checkWidth("the page")
			b.screenshot(window.name + "-top")

			// With the examples unchanged: they have the same coupon and the same user.
			b.expand("createCoupon")
			const location = "coupons/summer%20sale"
			if text := b.execute("createCoupon", 201); !strings.Contains(text, "location: "+location) {
				t.Errorf("the response to the creation shows no Location: %s", text)
			}
			b.screenshot(window.name + "-create")
			b.collapse("createCoupon")

			b.expand("claimCoupon")
			b.execute("claimCoupon", 201)
			b.wantNoErrors()
			if text := b.execute("claimCoupon", 409); !strings.Contains(text, "ALREADY_CLAIMED") {
				t.Errorf("the response to the second claim is not ALREADY_CLAIMED: %s", text)
			}
			b.wantError("409 (Conflict)") // Chromium logs every status from 400 up
			b.screenshot(window.name + "-claim")
			b.collapse("claimCoupon")

			b.expand("getCoupon")
			text := b.execute("getCoupon", 200)
			for _, wanted := range []string{`"remaining_amount": 4`, `"ada"`} {
				if !strings.Contains(text, wanted) {
					t.Errorf("the coupon is shown without %s: %s", wanted, text)
				}
			}
			b.screenshot(window.name + "-get")
			b.checkWidth("the response")
			// What a program in a browser does with the Location.
			eval[chromedp.Void](b, fmt.Sprintf(`void fetch(new URL(%q, location.origin + %q)).then(r => r.text()).then(t => window.read = t)`,
				location, window.prefix+"/api/coupons"))
			b.waitFor(`window.read !== undefined`)
			if read := eval[string](b, `window.read`); !strings.Contains(read, `"claimed_by":["ada"]`) {
				t.Errorf("the Location leads to %s", read)
			}
			b.wantNoErrors()
			b.checkRequests(service, window.prefix)
		})
	}
}

// start serves the API with an in-memory Store until the test ends, below a prefix of the path, and
// returns its URL without the prefix.
func start(t *testing.T, prefix string) string {
	t.Helper()
	handler := api.New(apitest.NewStore(), api.Options{})
	server := httptest.NewUnstartedServer(nil)
	server.Config = api.NewServer(http.StripPrefix(prefix, handler), zerolog.Nop())
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

// browser is a Chromium with one page.
type browser struct {
	t        *testing.T
	ctx      context.Context
	console  func() (chromedp.ConsoleMessage, error, bool) // waits for the next message
	requests iter.Seq2[network.EventRequestWillBeSent, error]
}

// openBrowser starts Chromium with an empty page. Without Chromium, the test fails.
func openBrowser(t *testing.T, width, height int64) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		// Chromium's own requests to the internet fail.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.UserDataDir(t.TempDir()),
	)
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it does not work for root
	}
	ctx, cancel := context.WithTimeout(context.Background(), browserTimeout)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
	})

	b := &browser{t: t, ctx: ctx}
	b.do(chromedp.EmulateViewport(width, height))
	b.requests = chromedp.Events(ctx, network.RequestWillBeSent)
	next, stop := iter.Pull2(chromedp.Console(ctx))
	t.Cleanup(stop)
	b.console = next
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// eval runs JavaScript in the page through the DevTools protocol, to which the page's policy does
// not apply.
func eval[T any](b *browser, script string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// waitFor waits for a JavaScript condition. chromedp's Poll calls eval in the page, which the
// policy forbids.
func (b *browser) waitFor(condition string) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); !eval[bool](b, condition); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.screenshot("failed")
			b.t.Fatalf("timed out waiting for %s\n%s", condition, eval[string](b, `document.body.innerText`))
		}
	}
}

// checkOperations checks that the page shows the operations of openapi.yaml, and no others.
func (b *browser) checkOperations() {
	b.t.Helper()
	shown := map[string]bool{}
	for _, id := range eval[[]string](b, `[...document.querySelectorAll(".opblock")].map(o => o.id)`) {
		shown[id] = true
	}
	operations := 0
	for _, item := range apitest.Contract(b.t).Paths.Map() {
		for _, operation := range item.Operations() {
			operations++
			if id := elementID(operation.Tags[0], operation.OperationID); !shown[id] {
				b.t.Errorf("the page does not show %s", id)
			}
		}
	}
	if operations != len(shown) {
		b.t.Errorf("the page shows %d operations, openapi.yaml has %d", len(shown), operations)
	}
}

// checkCodes checks that a collapsible section explains each error code under its own heading.
func (b *browser) checkCodes() {
	b.t.Helper()
	b.waitFor(`document.querySelectorAll(".info details > h3").length > 0`)
	shown := eval[[]string](b, `[...document.querySelectorAll(".info details > h3")]
		.filter(h => h.nextElementSibling.tagName === "P").map(h => h.textContent)`)
	for _, code := range apitest.Contract(b.t).Components.Schemas["Code"].Value.Enum {
		if !slices.Contains(shown, fmt.Sprint(code)) {
			b.t.Errorf("the page explains %v, but not %s", shown, code)
		}
	}
}

// elementID returns the id of the element that shows an operation.
func elementID(tag, operation string) string { return "operations-" + tag + "-" + operation }

// tagCoupons is the tag of the operations that the test tries out.
const tagCoupons = "Coupons"

// inOperation returns the CSS selector of a descendant of an operation's element.
func inOperation(operation, selector string) chromedp.CSS {
	return chromedp.CSS("#" + elementID(tagCoupons, operation) + " " + selector)
}

// expand expands an operation and clicks "Try it out".
func (b *browser) expand(operation string) {
	b.t.Helper()
	b.do(
		chromedp.Click(inOperation(operation, ".opblock-summary-control")),
		chromedp.Click(inOperation(operation, ".try-out__btn"), chromedp.NodeVisible),
	)
}

func (b *browser) collapse(operation string) {
	b.t.Helper()
	b.do(
		chromedp.Click(inOperation(operation, ".opblock-summary-control")),
		chromedp.WaitNotPresent(inOperation(operation, ".execute")),
	)
}

// execute sends the request, waits for a response with this status, and returns the text that the
// page shows for it.
func (b *browser) execute(operation string, status int) string {
	b.t.Helper()
	response := fmt.Sprintf(`document.querySelector("#%s .live-responses-table tbody")?.innerText ?? ""`, elementID(tagCoupons, operation))
	b.do(chromedp.Click(inOperation(operation, ".execute"), chromedp.NodeVisible))
	b.waitFor(fmt.Sprintf(`(%s).trim().startsWith("%d")`, response, status))
	b.do(chromedp.ScrollIntoView(inOperation(operation, ".live-responses-table")))
	return eval[string](b, response)
}

// checkWidth fails the test if the page is wider than the window.
func (b *browser) checkWidth(what string) {
	b.t.Helper()
	if over := eval[int](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
		b.t.Errorf("%s is %d pixels wider than the window: %q", what, over, eval[[]string](b, `[...document.querySelectorAll("body *")]
			.filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
			.map(e => e.tagName + "." + e.className)`))
	}
}

// screenshot saves what the window shows in the directory COUPOND_PICTURES, if that is set.
func (b *browser) screenshot(name string) {
	b.t.Helper()
	directory := os.Getenv("COUPOND_PICTURES")
	if directory == "" {
		return
	}
	image, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(directory, 0o750); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "docs-"+name+".png"), image, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// takeErrors removes all messages from the console, and returns the errors and warnings.
func (b *browser) takeErrors() (errors []string) {
	b.t.Helper()
	// Messages arrive in order: when the mark arrives, all earlier ones have arrived.
	const mark = "all messages have arrived"
	eval[chromedp.Void](b, fmt.Sprintf("console.debug(%q)", mark))
	for {
		message, err, _ := b.console()
		if err != nil || message.Text == mark {
			if err != nil {
				b.t.Fatal(err)
			}
			return errors
		}
		switch message.Type {
		case chromedp.ConsoleError, chromedp.ConsoleException, chromedp.ConsoleWarning:
			errors = append(errors, fmt.Sprintf("%s (%s, %s)", message, message.Source, message.URL))
		}
	}
}

// wantNoErrors fails the test if the console has an error, an exception, a warning, or a violation
// of the page's policy.
func (b *browser) wantNoErrors() {
	b.t.Helper()
	for _, message := range b.takeErrors() {
		b.t.Error(message)
	}
}

// wantError fails the test unless the console has exactly one error, with this text.
func (b *browser) wantError(text string) {
	b.t.Helper()
	if got := b.takeErrors(); len(got) != 1 || !strings.Contains(got[0], text) {
		b.t.Errorf("the console has the errors %q, want one with %q", got, text)
	}
}

// checkRequests checks that the page sent requests to the service below this prefix of the path,
// and to no other address.
func (b *browser) checkRequests(service, prefix string) {
	b.t.Helper()
	const last = "/openapi.yaml?last"
	eval[chromedp.Void](b, fmt.Sprintf("void fetch(%q)", prefix+last))
	paths := map[string]bool{}
	for request, err := range b.requests {
		if err != nil {
			b.t.Fatal(err)
		}
		if strings.HasSuffix(request.Request.URL, last) {
			break
		}
		address, err := url.Parse(request.Request.URL)
		if err != nil {
			b.t.Fatal(err)
		}
		switch {
		case address.Scheme == "data": // images in the style sheet
		case address.Scheme+"://"+address.Host != service || !strings.HasPrefix(address.Path, prefix+"/"):
			b.t.Errorf("the page sent a request to %s", address)
		default:
			paths[strings.TrimPrefix(address.Path, prefix)] = true
		}
	}
	for _, path := range []string{"/docs", "/docs/swagger-ui-bundle.js", "/openapi.yaml", "/api/coupons", "/api/coupons/claim", "/api/coupons/summer sale"} {
		if !paths[path] {
			b.t.Errorf("the page sent no request for %s, only for %v", path, paths)
		}
	}
}
