package main

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// readAll reads every coupon with its claims from the tables, past the service and past the proxy.
func (w *world) readAll(ctx context.Context) (map[string]*stored, error) {
	all := map[string]*stored{}
	err := w.asOwner(ctx, func(conn *pgx.Conn) error {
		var s stored
		rows, err := conn.Query(ctx, `select name, amount, remaining_amount from public.coupons`)
		if err != nil {
			return err
		}
		if _, err = pgx.ForEachRow(rows, []any{&s.name, &s.amount, &s.remaining}, func() error {
			all[s.name] = &stored{name: s.name, amount: s.amount, remaining: s.remaining}
			return nil
		}); err != nil {
			return err
		}

		var coupon, user string
		var number int32
		rows, err = conn.Query(ctx, `select coupon_name, claim_number, user_id from public.claims order by coupon_name, claim_number`)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&coupon, &number, &user}, func() error {
			of := all[coupon] // the foreign key sees to it that there is one
			of.numbers, of.users = append(of.numbers, number), append(of.users, user)
			return nil
		})
		return err
	})
	return all, err
}
