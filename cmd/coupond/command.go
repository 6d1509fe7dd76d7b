package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// usageTemplate is cobra's template without the parts that are not used here, and with the
// environment variables.
const usageTemplate = `Usage:{{if .HasAvailableSubCommands}}
  {{.CommandPath}} <command>

Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}
  {{.UseLine}}{{end}}{{with .LocalFlags.FlagUsages}}

Flags:
{{trimTrailingWhitespaces .}}{{end}}{{with .Annotations.` + environmentNote + `}}

Environment:
{{trimTrailingWhitespaces .}}{{end}}{{if .HasAvailableSubCommands}}

Details and environment variables of a command:  {{.CommandPath}} <command> --help{{end}}
`

// environmentNote is the key of the annotation that holds the help on the environment variables of
// a command.
const environmentNote = "environment"

// newRootCommand builds the command line. Commands read their configuration from vars, never from
// the process's environment.
func newRootCommand(vars environment, stdout io.Writer, stderr *output) *cobra.Command {
	root := &cobra.Command{
		Use:   "coupond",
		Short: "A coupon service for flash sales",
		Long: `coupond is a coupon service for flash sales. It hands out a limited number of
coupons to many users at once: never more than there are, and at most one of
each coupon to a user.

To try it, with nothing else installed:  coupond dev
To run it on your PostgreSQL:            coupond migrate && coupond serve

Exit status: 0 success, 1 failure, 2 wrong usage or configuration.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usageError{unknownCommand(cmd, args[0])}
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The exit status is not 0, so that a container without a command does not look
			// successful.
			cmd.SetOut(stderr)
			return errors.Join(cmd.Help(), usageError{errors.New("no command given")})
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       readBuild().version,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetVersionTemplate("coupond {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see: %s --help)", err, cmd.CommandPath())}
	})
	root.SetUsageTemplate(usageTemplate)

	root.AddCommand(
		newServeCommand(vars, stderr),
		newDevCommand(vars, stdout, stderr),
		newMigrateCommand(vars, stdout, stderr),
		newSQLCommand(stdout),
		newHealthcheckCommand(vars, stdout),
		newVersionCommand(stdout),
		newCompletionCommand(stdout),
	)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand())
	return root
}

// newHelpCommand replaces cobra's help command, which exits with status 0 for an unknown command.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about a command; the same as --help",
		Long:  "Print the help about a command, as its flag --help does.",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range cmd.Root().Commands() {
				if len(args) == 0 && c.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{unknownCommand(cmd.Root(), strings.Join(args, " "))}
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	}
}

// noArguments rejects arguments as wrong usage; cobra.NoArgs would call them unknown commands.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%s takes no arguments, got %q (see: %[1]s --help)", cmd.CommandPath(), args)}
}

func unknownCommand(root *cobra.Command, name string) error {
	root.SuggestionsMinimumDistance = 2
	if near := root.SuggestionsFor(name); len(near) > 0 {
		return fmt.Errorf("unknown command %q; did you mean %s?", name, strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q (see: %s --help)", name, root.CommandPath())
}
