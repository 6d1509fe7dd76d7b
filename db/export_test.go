package db

// The tests are in another package because pgtest, which they use, imports this one.
var (
	// ApplyFiles is Apply or ApplyProxy with other files than the embedded Files, as in an older or
	// newer program.
	ApplyFiles = applyFiles
	Files      = files
	// ScriptOf is Script with other files than the embedded Files.
	ScriptOf = scriptOf
)
