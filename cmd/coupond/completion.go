package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// shells are the shells that cobra generates completion scripts for.
var shells = []string{"bash", "zsh", "fish", "powershell"}

// newCompletionCommand replaces cobra's completion command, which exits with status 0 for an
// unknown shell.
func newCompletionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print a script for shell completion",
		Long: `Print a script that makes your shell complete the commands and flags of coupond.

For this session:
  bash        source <(coupond completion bash)
  zsh         source <(coupond completion zsh)
  fish        coupond completion fish | source
  powershell  coupond completion powershell | Out-String | Invoke-Expression

For every session, put that line into the file that your shell reads when it
starts. bash needs the package bash-completion. zsh needs the line
"autoload -U compinit; compinit" before it.`,
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && slices.Contains(shells, args[0]) {
				return nil
			}
			return usageError{fmt.Errorf("%s takes one shell (%s), got %q (see: %[1]s --help)",
				cmd.CommandPath(), strings.Join(shells, ", "), args)}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(stdout, true)
			case "zsh":
				return root.GenZshCompletion(stdout)
			case "fish":
				return root.GenFishCompletion(stdout, true)
			default:
				return root.GenPowerShellCompletionWithDesc(stdout)
			}
		},
	}
}
