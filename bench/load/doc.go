// Package load sends claims and reads to a running service and counts every answer.
//
// It knows only the HTTP contract of the service (openapi.yaml), so anything that implements the
// contract is measured in the same way. A [Plan] describes a run: a function that returns request
// i, and a number of keep-alive connections. In a closed loop each connection sends its next
// request when it has the answer to the last one. In an open loop requests arrive at a rate,
// however fast the service answers. The same seed gives the same requests at the same times.
//
// In a closed loop latency runs from the moment the request was sent. A slow answer delays the
// requests behind it, so the figures describe the connections and not independent users. In an open
// loop latency runs from the moment the request was due and includes the wait for a free
// connection, so the figures have no coordinated omission.
//
// Package check compares the answers with what the service reports afterwards.
package load
