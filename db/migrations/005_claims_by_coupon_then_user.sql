-- The pair (user, coupon) stays unique, but its index begins with the coupon, so the claims of a
-- sale are adjacent, on pages that are in memory. In an index by user, each claim of a user with
-- other coupons is on a different page, which has to be read, and written whole to the WAL after a
-- checkpoint (docs/adr/0017-claims-by-coupon-then-user.md).
--
-- New claims are refused (503) while the index is built, which takes some seconds per million
-- claims. To avoid that, build it before:
--   create unique index concurrently claims_coupon_name_user_id_key
--     on public.claims (coupon_name, user_id);
create unique index if not exists claims_coupon_name_user_id_key
  on public.claims (coupon_name, user_id);
