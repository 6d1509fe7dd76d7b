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
	"sync"

	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5/static"
)

const (
	pathRoot     = "/"
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

// docsPolicy is the Content-Security-Policy of the docs page: nothing inline and nothing from other
// origins. The images in Swagger UI's style sheet are data: URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsFS has the page that contains Swagger UI. Only Swagger UI itself comes from swgui: its own
// page has inline scripts and styles, which the policy forbids, and no viewport for phones.
//
//go:embed docs
var docsFS embed.FS

// docsFile is a file of the docs page, in memory. All readers share it.
type docsFile struct {
	contentType string
	plain       []byte
	compressed  []byte // nil if the file is not stored compressed
}

// docsFiles returns the files at /docs/{file} by name, and the page itself as pathDocs.
var docsFiles = sync.OnceValues(func() (map[string]docsFile, error) {
	files := make(map[string]docsFile)
	for _, source := range []struct {
		name, contentType string
		fs                embed.FS
		path              string // ends in .gz if it is compressed
	}{
		{pathDocs, "text/html; charset=utf-8", docsFS, "docs/index.html"},
		{"docs.css", "text/css; charset=utf-8", docsFS, "docs/docs.css"},
		{"docs.js", "text/javascript; charset=utf-8", docsFS, "docs/docs.js"},
		{"favicon-32x32.png", "image/png", static.FS, "favicon-32x32.png"},
		{"swagger-ui.css", "text/css; charset=utf-8", static.FS, "swagger-ui.css.gz"},
		{"swagger-ui-bundle.js", "text/javascript; charset=utf-8", static.FS, "swagger-ui-bundle.js.gz"},
	} {
		content, err := source.fs.ReadFile(source.path)
		if err != nil {
			return nil, fmt.Errorf("read a file of the docs page: %w", err)
		}
		file := docsFile{contentType: source.contentType, plain: content}
		if strings.HasSuffix(source.path, ".gz") {
			file.compressed = content
			if file.plain, err = gunzip(content); err != nil {
				return nil, fmt.Errorf("decompress %s: %w", source.path, err)
			}
		}
		files[source.name] = file
	}
	return files, nil
})

// root handles GET /, for people with a browser. The Location is relative, so that it also holds
// behind a path prefix.
func (h *Handler) root(x *exchange) {
	x.Header().Set("Location", strings.TrimPrefix(pathDocs, "/"))
	x.send(http.StatusFound, nil)
}

// docs handles GET /docs, the page with Swagger UI.
func (h *Handler) docs(x *exchange) {
	x.Header().Set("Content-Security-Policy", docsPolicy)
	x.sendDocsFile(pathDocs)
}

// docsFile handles GET /docs/{file}, the files that the page loads.
func (h *Handler) docsFile(x *exchange) {
	x.sendDocsFile(chi.URLParam(x.request, "file"))
}

// openAPI handles GET /openapi.yaml.
func (h *Handler) openAPI(x *exchange) {
	x.sendAs("application/yaml", OpenAPI)
}

func (x *exchange) sendDocsFile(name string) {
	files, err := docsFiles()
	if err != nil {
		x.fail(err)
		return
	}
	file, found := files[name]
	if !found {
		x.sendCode(CodeNotFound)
		return
	}
	body := file.plain
	if file.compressed != nil {
		x.Header().Set("Vary", "Accept-Encoding")
		if acceptsGzip(x.request) {
			x.Header().Set("Content-Encoding", "gzip")
			body = file.compressed
		}
	}
	x.sendAs(file.contentType, body)
}

// sendAs sends a body with a Content-Type other than JSON, which browsers must not second-guess.
func (x *exchange) sendAs(contentType string, body []byte) {
	x.Header().Set("Content-Type", contentType)
	x.Header().Set("X-Content-Type-Options", "nosniff")
	x.send(http.StatusOK, body)
}

// acceptsGzip reports whether the request's Accept-Encoding lists gzip with a quality other than 0.
func acceptsGzip(r *http.Request) bool {
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
