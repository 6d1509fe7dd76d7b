package main

import (
	"io"

	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

func newSQLCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "sql",
		Short: "Print the schema and functions as a psql script",
		Long: `Print the schema and its functions as one psql script that does what migrate
does, to read it or to run it yourself:

  coupond sql >install.sql
  psql --no-psqlrc --file=install.sql postgres://…

Like migrate, the script only adds what is missing and can be run again. Unlike
migrate, it stops if it does not get a lock within two seconds.`,
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
