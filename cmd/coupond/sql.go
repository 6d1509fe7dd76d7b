package main

import (
	"io"

	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

func newSQLCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "sql",
		Short: "Print what migrate does as a script for psql",
		Long: `Print the whole schema and its functions as one script for psql, for those who
want to read what migrate does, or to run it themselves:

  coupond sql >install.sql
  psql --no-psqlrc --file=install.sql postgres://…

Like migrate it does only what is missing, and may be run again.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			script, err := db.Script()
			if err != nil {
				return err
			}
			_, err = io.WriteString(stdout, script)
			return err
		},
	}
}
