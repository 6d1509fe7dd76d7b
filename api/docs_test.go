package api_test

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestOpenAPI_servedUnchanged(t *testing.T) {
	t.Parallel()
	got := serve(t).do(http.MethodGet, "/openapi.yaml", "")
	got.want(t, http.StatusOK, "")
	source, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.body != string(source) {
		t.Error("api/openapi.yaml differs from openapi.yaml; run go generate ./api")
	}
}

// The root leads to the docs page, also behind a path prefix.
func TestRoot(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		got := s.do(method, "/", "")
		got.want(t, http.StatusFound, "")
		for base, want := range map[string]string{"/": "/docs", "/shop/eu/": "/shop/eu/docs"} {
			if target := resolve(t, base, got.header.Get("Location")); target != want || got.body != "" {
				t.Errorf("%s %s leads to %s with body %q, want %s", method, base, target, got.body, want)
			}
		}
	}
}

// All links of the page are relative and work. It has no inline code, which its policy forbids.
func TestDocs_links(t *testing.T) {
	t.Parallel()
	s := serve(t)
	page := s.do(http.MethodGet, "/docs", "")
	page.want(t, http.StatusOK, "")

	policy := page.header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; ") || strings.ContainsAny(policy, "*/") || strings.Contains(policy, "unsafe") {
		t.Errorf("the policy %q allows more than the page needs", policy)
	}
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page.body, -1)
	for _, link := range links {
		if strings.Contains(link[1], ":") || strings.HasPrefix(link[1], "/") {
			t.Errorf("the page links to %s, which is not relative", link[1])
		}
		got := s.do(http.MethodGet, "/"+link[1], "")
		if got.status != http.StatusOK || got.body == "" || got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: status %d, %d bytes, %v", link[1], got.status, len(got.body), got.header)
		}
	}
	if len(links) < 6 {
		t.Errorf("the page has %d links, want at least 6", len(links))
	}
	if inline := regexp.MustCompile(`<style|<script>| style=| on[a-z]+=`).FindString(page.body); inline != "" {
		t.Errorf("the page has %q, which its policy forbids", inline)
	}
}
