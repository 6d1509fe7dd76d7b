-- The pair (user, coupon) stays unique, but its index begins with the coupon: the claims of a sale stand side by side in it, on
-- pages that are in memory. By user, each claim of somebody who has other coupons went to a page of its own: with 10,000,000
-- claims stored it had to be read, and after a checkpoint written whole to the WAL. 6,000 bytes of WAL and 7 blocks read a
-- claim, instead of 290 bytes and none (docs/adr/0017-claims-by-coupon-then-user.md).
--
-- New claims are refused (503) while the index is built, some seconds for a million. Where they may not be, build it before:
--   create unique index concurrently claims_coupon_name_user_id_key on public.claims (coupon_name, user_id);
create unique index if not exists claims_coupon_name_user_id_key
  on public.claims (coupon_name, user_id);
