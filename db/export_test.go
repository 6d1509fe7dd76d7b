package db

// The tests stand outside of the package (dbtest, which gives them databases, imports it).
var (
	// ApplyFiles is Apply for other files than the embedded ones, as an older or a newer program has them.
	ApplyFiles = applyFiles
	// Files are the embedded ones.
	Files = files
	// ApplyProxyFiles is ApplyProxy for other files than the embedded ones, which are ProxyFiles.
	ApplyProxyFiles = applyProxyFiles
	ProxyFiles      = proxyFiles
	// JudgeServer is what Apply says about a server.
	JudgeServer = judgeServer
)
