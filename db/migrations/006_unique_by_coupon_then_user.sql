-- The index of 005 becomes the constraint, in a separate transaction: while still holding the lock
-- of the build, this statement would wait for claims that wait for that lock.
alter table public.claims
  drop constraint claims_user_has_coupon_once,
  add constraint claims_user_has_coupon_once
    unique using index claims_coupon_name_user_id_key;
