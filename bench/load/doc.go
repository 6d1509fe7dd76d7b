// Package load sends claims to a running service as fast as two shared cores allow, and counts exactly what came back.
//
// It knows nothing of the service but its HTTP contract (openapi.yaml), so that everything behind that contract can be
// measured by the same ruler. A run is described by a [Plan]: request i out of a function, over so many keep-alive
// connections, either each connection asking again as soon as it was answered (a closed loop) or requests arriving at a
// rate, whatever the service does (an open loop). The same seed gives the same requests at the same times.
//
//	users := load.Users(50_000)
//	order := load.Order(len(users), 5, 1) // 5 % ask again, shuffled by seed 1
//	report, err := load.Run(ctx, load.Plan{
//		Address:     "127.0.0.1:8080",
//		Connections: 128,
//		Requests:    len(order),
//		Request:     func(i int) load.Request { return load.Request{User: users[order[i]], Coupon: "sale"} },
//	})
//	report.Latency.ValueAtQuantile(99) // µs
//	report.Count(load.Claimed)
//
// What the users were told is compared with what the service reports by package books.
//
// # Latency
//
// In a closed loop the latency of a request runs from the moment it was sent. A slow answer then also holds back the
// requests that would have come after it, so such figures say what the connections felt, not what a crowd of that size
// would have. In an open loop it runs from the moment the request was due, however long it then had to wait for a free
// connection: the figures are free of coordinated omission by the way they are taken, and need no correction afterwards.
package load
