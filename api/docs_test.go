package api_test

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
)

func TestOpenAPIIsServedAsItIs(t *testing.T) {
	t.Parallel()
	got := serve(t).do(http.MethodGet, "/openapi.yaml", "")
	got.want(t, http.StatusOK, "")
	source, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.body != string(source) {
		t.Error("the service serves another openapi.yaml than the repository's; run go generate ./api")
	}
}

// All that the page names is there, and nothing of it is elsewhere or inline.
func TestDocsAreWhole(t *testing.T) {
	t.Parallel()
	s := serve(t)
	page := s.do(http.MethodGet, "/docs", "")
	page.want(t, http.StatusOK, "")

	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page.body, -1)
	for _, link := range links {
		if strings.Contains(link[1], ":") || strings.HasPrefix(link[1], "/") {
			t.Errorf("the page links to %s, which is not relative", link[1])
		}
		got := s.do(http.MethodGet, "/"+link[1], "")
		if got.status != http.StatusOK || got.body == "" || got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s is answered %d, %d bytes, %v", link[1], got.status, len(got.body), got.header)
		}
	}
	if len(links) < 6 {
		t.Errorf("the page has only %d links", len(links))
	}
	if inline := regexp.MustCompile(`<style|<script>| style=| on[a-z]+=`).FindString(page.body); inline != "" {
		t.Errorf("the page has %q, which its policy forbids", inline)
	}
}

func TestDocsPolicy(t *testing.T) {
	t.Parallel()
	policy := serve(t).do(http.MethodGet, "/docs", "").header.Get("Content-Security-Policy")
	for directive := range strings.SplitSeq(policy, ";") {
		for _, source := range strings.Fields(directive)[1:] {
			if source != "'none'" && source != "'self'" && (source != "data:" || !strings.Contains(directive, "img-src")) {
				t.Errorf("the policy allows %s in %q", source, directive)
			}
		}
	}
	for _, wanted := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, wanted) {
			t.Errorf("the policy is %q, without %s", policy, wanted)
		}
	}
}

// Swagger UI travels compressed to whoever takes that, and is the same for whoever does not.
func TestDocsAreCompressedOnWish(t *testing.T) {
	t.Parallel()
	s := serve(t)
	const path = "/docs/swagger-ui-bundle.js"
	plain := s.do(http.MethodGet, path, "", "Accept-Encoding", "identity")
	for wish, compressed := range map[string]bool{
		"gzip": true, "br, GZIP;q=0.5": true, "gzip; q=1": true, "deflate,gzip": true,
		"gzip;q=0": false, "gzip;q=0.0": false, "gzip;q=x": false, "br": false, "*;q=0": false, "x-gzipped": false,
	} {
		got := s.do(http.MethodGet, path, "", "Accept-Encoding", wish)
		got.want(t, http.StatusOK, "")
		if got.header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("a cache is not told that %s varies", path)
		}
		if (got.header.Get("Content-Encoding") == "gzip") != compressed {
			t.Errorf("who takes %q gets %q", wish, got.header.Get("Content-Encoding"))
		}
		if !compressed && got.body != plain.body || compressed && len(got.body) >= len(plain.body)/2 {
			t.Errorf("who takes %q gets %d bytes, the file has %d", wish, len(got.body), len(plain.body))
		}
	}
	// This one asks for gzip by itself, and unpacks what it gets.
	if got := s.do(http.MethodGet, path, ""); got.body != plain.body {
		t.Errorf("unpacked, it has %d bytes, the file %d", len(got.body), len(plain.body))
	}
}

// The documents are there when nothing else is.
func TestDocsNeedNoDatabase(t *testing.T) {
	t.Parallel()
	store := apitest.NewStore()
	store.Fail(errFault)
	s := serve(t, func(s *service) { s.server.Handler = api.New(store, api.Options{Log: zerolog.Nop()}) })
	for _, path := range []string{"/docs", "/docs/swagger-ui.css", "/openapi.yaml"} {
		s.do(http.MethodGet, path, "").want(t, http.StatusOK, "")
	}
	if store.Calls() > 0 {
		t.Error("the Store was asked")
	}
}
