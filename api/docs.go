package api

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5/static"
)

// OpenAPI is the contract of the HTTP API. The file is a copy of openapi.yaml at the top of the
// repository, because go:embed cannot read a parent directory; a test compares the two.
//
//go:generate cp ../openapi.yaml openapi.yaml
//go:embed openapi.yaml
var OpenAPI []byte

// docsPolicy is the Content-Security-Policy of the docs page: nothing inline and nothing from other
// origins. The images in Swagger UI's style sheet are data: URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsFS has the page that contains Swagger UI. Only Swagger UI itself comes from swgui: its own
// page has inline scripts and styles, which the policy forbids, and no viewport for phones.
//
//go:embed docs
var docsFS embed.FS

// docsFile is a file of the docs page, in memory. All readers share its content.
type docsFile struct {
	contentType string
	content     []byte
}

// docsFiles returns the page itself as "", and the files that it loads by name.
var docsFiles = sync.OnceValue(func() map[string]docsFile {
	const html, css, js = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"
	return map[string]docsFile{
		"":                     {html, readDocsFile(docsFS, "docs/index.html")},
		"docs.css":             {css, readDocsFile(docsFS, "docs/docs.css")},
		"docs.js":              {js, readDocsFile(docsFS, "docs/docs.js")},
		"favicon-32x32.png":    {"image/png", readDocsFile(static.FS, "favicon-32x32.png")},
		"swagger-ui.css":       {css, readDocsFile(static.FS, "swagger-ui.css.gz")},
		"swagger-ui-bundle.js": {js, readDocsFile(static.FS, "swagger-ui-bundle.js.gz")},
	}
})

// readDocsFile reads a file, which is compressed if its name ends in .gz. It panics if that fails,
// which the tests would have found: the files are a part of the program.
func readDocsFile(files embed.FS, path string) []byte {
	content, err := files.ReadFile(path)
	if err == nil && strings.HasSuffix(path, ".gz") {
		content, err = gunzip(content)
	}
	if err != nil {
		panic(fmt.Errorf("read the file %s of the docs page: %w", path, err))
	}
	return content
}

func gunzip(compressed []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(reader)
}

// root handles GET /, for people with a browser. The Location is relative, so that it also holds
// behind a path prefix.
func (h *Handler) root(x *exchange) error {
	x.Header().Set("Location", "docs")
	return x.send(http.StatusFound, nil)
}

// docs handles GET /docs, the page with Swagger UI, and GET /docs/{file}, the files that it loads.
func (h *Handler) docs(x *exchange) error {
	name := chi.URLParam(x.request, "file")
	file, found := docsFiles()[name]
	if !found {
		return reject(CodeNotFound)
	}
	if name == "" {
		x.Header().Set("Content-Security-Policy", docsPolicy)
	}
	return x.sendAs(file.contentType, file.content)
}

// openAPI handles GET /openapi.yaml.
func (h *Handler) openAPI(x *exchange) error { return x.sendAs("application/yaml", OpenAPI) }

// sendAs sends a body with a Content-Type other than JSON, which browsers must not second-guess.
func (x *exchange) sendAs(contentType string, body []byte) error {
	x.Header().Set("Content-Type", contentType)
	x.Header().Set("X-Content-Type-Options", "nosniff")
	return x.send(http.StatusOK, body)
}
