// Package dba holds docs/dba.md against the real programs: its tests type what the handbook types, and compare. They need psql,
// pg_dump and pgbouncer, which a new machine may lack; so they have a build tag, and a target of their own:
//
//	make test-dba
package dba
