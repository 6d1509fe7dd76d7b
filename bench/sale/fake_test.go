package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/pgstore"
)

// fake is the service with its coupons in memory, except for the faults of a test.
type fake struct {
	*apitest.Store

	claims atomic.Int64 // received so far
	coupon string       // the last one that was created
	// onClaim is called before a claim. If it returns true, it has answered.
	onClaim func(c fakeClaim) bool
	// refuse is a method; its requests are answered 503.
	refuse string
}

// fakeClaim is a claim that a fake has received. n counts from 1.
type fakeClaim struct {
	*fake
	w http.ResponseWriter
	r *http.Request
	n int64
	// claim processes the claim, without an answer.
	claim func()
}

// CreateCoupon implements api.Store.
func (f *fake) CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	f.coupon = name
	return f.Store.CreateCoupon(ctx, name, amount)
}

func (f *fake) start(t *testing.T) (url string) {
	t.Helper()
	f.Store = apitest.NewStore()
	service := api.New(f, api.Options{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == f.refuse {
			fakeClaim{w: w}.answer(load.Unavailable)
			return
		}
		if f.onClaim != nil && r.URL.Path == "/api/coupons/claim" {
			if f.onClaim(fakeClaim{f, w, r, f.claims.Add(1), func() { service.ServeHTTP(httptest.NewRecorder(), r) }}) {
				return
			}
		}
		service.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func (c fakeClaim) answer(a load.Answer) bool {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(a.Status)
	if a.Code != "" {
		_, _ = fmt.Fprintf(c.w, `{"error":"an error of the test","code":%q,"request_id":"1"}`, a.Code)
	}
	return true
}

// untilGone waits until the client has closed the connection.
func (c fakeClaim) untilGone() bool {
	_, _ = io.Copy(io.Discard, c.r.Body)
	<-c.r.Context().Done()
	return true
}

// cut closes the connection without an answer.
func cut() { panic(http.ErrAbortHandler) }
