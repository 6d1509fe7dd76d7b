package api

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5/static"
)

const (
	pathDocs     = "/docs"
	pathDocsFile = "/docs/{file}"
	pathOpenAPI  = "/openapi.yaml"
)

// OpenAPI is the contract of the HTTP API. The file is a copy of openapi.yaml at the top of the
// repository, because go:embed cannot read a parent directory; a test compares the two.
//
//go:generate cp ../openapi.yaml openapi.yaml
//go:embed openapi.yaml
var OpenAPI []byte

// docsPolicy is the page's Content-Security-Policy: nothing inline, and nothing from anywhere else. The pictures
// in Swagger UI's style sheet are data: URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsOwn is the page around Swagger UI. swgui has a page as well, but with inline scripts and styles, which a
// policy must allow one by one, and without a viewport for telephones; so only Swagger UI itself is taken from there.
//
//go:embed docs
var docsOwn embed.FS

// docsFile is a file of the page, as it stands in the binary.
type docsFile struct {
	contentType string
	in          embed.FS
	path        string // ends in .gz when it is compressed there
}

var docsIndex = docsFile{"text/html; charset=utf-8", docsOwn, "docs/index.html"}

// docsFiles are the files behind /docs/{file}.
var docsFiles = map[string]docsFile{
	"docs.css":             {"text/css; charset=utf-8", docsOwn, "docs/docs.css"},
	"docs.js":              {"text/javascript; charset=utf-8", docsOwn, "docs/docs.js"},
	"favicon-32x32.png":    {"image/png", static.FS, "favicon-32x32.png"},
	"swagger-ui.css":       {"text/css; charset=utf-8", static.FS, "swagger-ui.css.gz"},
	"swagger-ui-bundle.js": {"text/javascript; charset=utf-8", static.FS, "swagger-ui-bundle.js.gz"},
}

// docs answers GET /docs: Swagger UI.
func (h *Handler) docs(x *exchange) {
	x.Header().Set("Content-Security-Policy", docsPolicy)
	x.sendDocs(docsIndex)
}

// docsFile answers GET /docs/{file}: what the page is made of.
func (h *Handler) docsFile(x *exchange) {
	file, found := docsFiles[chi.URLParam(x.request, "file")]
	if !found {
		x.answer(CodeNotFound)
		return
	}
	x.sendDocs(file)
}

// openAPI answers GET /openapi.yaml: the contract of this very binary.
func (h *Handler) openAPI(x *exchange) {
	x.sendAs("application/yaml", OpenAPI)
}

func (x *exchange) sendDocs(file docsFile) {
	body, err := file.in.ReadFile(file.path)
	if err != nil {
		x.fail(fmt.Errorf("read the docs: %w", err))
		return
	}
	if strings.HasSuffix(file.path, ".gz") {
		x.Header().Set("Vary", "Accept-Encoding")
		if takesGzip(x.request) {
			x.Header().Set("Content-Encoding", "gzip")
		} else if body, err = gunzip(body); err != nil {
			x.fail(fmt.Errorf("decompress %s: %w", file.path, err))
			return
		}
	}
	x.sendAs(file.contentType, body)
}

// sendAs sends what is no JSON; a browser is not to guess otherwise.
func (x *exchange) sendAs(contentType string, body []byte) {
	x.Header().Set("Content-Type", contentType)
	x.Header().Set("X-Content-Type-Options", "nosniff")
	x.send(http.StatusOK, body)
}

// takesGzip says whether the request's Accept-Encoding has gzip, and not at the quality 0, which means never.
func takesGzip(r *http.Request) bool {
	for coding := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, quality, _ := strings.Cut(coding, ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		quality, isQuality := strings.CutPrefix(strings.TrimSpace(quality), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		return !isQuality || err == nil && q > 0
	}
	return false
}

func gunzip(compressed []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(reader)
}
