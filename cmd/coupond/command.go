package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// usageTemplate is cobra's, less what we do not have, and with the environment.
const usageTemplate = `Usage:{{if .HasAvailableSubCommands}}
  {{.CommandPath}} <command>

Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}
  {{.UseLine}}{{end}}{{with .LocalFlags.FlagUsages}}

Flags:
{{trimTrailingWhitespaces .}}{{end}}{{with .Annotations.` + environmentNote + `}}

Environment:
{{trimTrailingWhitespaces .}}{{end}}{{if .HasAvailableSubCommands}}

What a command does and which variables it reads:  {{.CommandPath}} <command> --help{{end}}
`

// environmentNote is the annotation of a command that holds the help on the variables it reads.
const environmentNote = "environment"

// newRootCommand builds the command line. The commands read their configuration from vars, never from the process.
func newRootCommand(vars environment, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "coupond",
		Short: "Hand out a limited number of coupons to a crowd",
		Long: `coupond hands out a limited number of coupons to a crowd that arrives all at
once: never more than there are, never two of one coupon to the same user.

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
			// Not exit status 0: a container whose command was forgotten must not look as if it had done its work.
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
		newMigrateCommand(vars, stdout),
		newSQLCommand(stdout),
		newHealthcheckCommand(vars, stdout),
		newVersionCommand(stdout),
		newCompletionCommand(stdout),
	)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand())
	return root
}

// newHelpCommand stands in for cobra's own, which answers a command that it does not know with exit status 0.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help on a command; the same as --help",
		Long:  "Print the help on a command, as its flag --help does.",
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

// noArguments refuses arguments as wrong usage; cobra.NoArgs calls them unknown commands.
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
