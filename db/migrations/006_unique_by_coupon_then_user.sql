-- The index of 005 becomes the constraint. In a transaction of its own: with the lock of the build still held, this one would be
-- waited for by claims that it waits for.
alter table public.claims
  drop constraint claims_user_has_coupon_once,
  add constraint claims_user_has_coupon_once
    unique using index claims_coupon_name_user_id_key;
