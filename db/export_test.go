package db

import "time"

// The tests are in another package because pgtest, which they use, imports this one.
var (
	// ApplyFiles is Apply with other files than the embedded Files, as in an older or newer program.
	ApplyFiles = applyFiles
	Files      = files
	// ApplyProxyFiles is ApplyProxy with other files than the embedded ProxyFiles.
	ApplyProxyFiles = applyProxyFiles
	ProxyFiles      = proxyFiles
	// ScriptOf is Script with other files than the embedded Files.
	ScriptOf = scriptOf
	// ApplyLock is the key of the advisory lock.
	ApplyLock = int64(applyLock)
	// ValidateServer checks the version and encoding of a server.
	ValidateServer = validateServer
)

// WithLockTimeout returns options with another time-out for locks.
func WithLockTimeout(options Options, timeout time.Duration) Options {
	options.lockTimeout = timeout
	return options
}
