// Package coupons holds what stands at the top of the repository and must be in
// the binary: go:embed cannot reach up.
package coupons

import _ "embed"

// OpenAPI is openapi.yaml, the contract of the HTTP API.
//
//go:embed openapi.yaml
var OpenAPI []byte
