package db

// The tests are in another package because pgtest, which they use, imports this one.
var (
	// ApplyFiles is Apply with other files than the embedded Files, as in an older or newer program.
	ApplyFiles = applyFiles
	Files      = files
	// ApplyProxyFiles is ApplyProxy with other files than the embedded ProxyFiles.
	ApplyProxyFiles = applyProxyFiles
	ProxyFiles      = proxyFiles
	// ValidateServer checks the version and encoding of a server.
	ValidateServer = validateServer
)
