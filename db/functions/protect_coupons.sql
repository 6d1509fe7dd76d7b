-- The trigger function of coupons. The name of a coupon is valid. A coupon that has claims is not
-- deleted, renamed or truncated, its amount is not lowered below its claims, and a new amount comes
-- with the remaining_amount that goes with it. (A claim changes remaining_amount only, and does not
-- fire the trigger.) It is the other side of check_claims, which locks the coupon: the statement that
-- fires this trigger has waited for claims in flight, and the query below has a snapshot of its own
-- that sees them, but only under READ COMMITTED.
create or replace function coupond.protect_coupons()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_number integer;
begin
  if tg_op in ('INSERT', 'UPDATE') and not is_valid_name(new.name) then
    raise exception using
      errcode = 'check_violation',
      message = 'the name of a coupon must have 1 to 255 characters that are not all white space',
      detail = format('It has %s characters.', char_length(new.name));
  end if;

  if tg_op = 'INSERT' then
    return null;
  end if;

  if tg_op = 'UPDATE'
    and new.name = old.name
    and new.amount >= old.amount
    and new.amount - new.remaining_amount = old.amount - old.remaining_amount
  then
    return null;
  end if;

  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'feature_not_supported',
      message = 'a coupon can be deleted, renamed or lowered in its amount only under READ COMMITTED',
      detail = 'At other isolation levels, the transaction may not see the newest claims of it.';
  end if;

  if tg_op = 'TRUNCATE' then
    if exists (select from claims) then
      raise exception using
        errcode = 'foreign_key_violation',
        message = 'the coupons have claims',
        hint = 'Truncate both tables at once: truncate coupond.coupons, coupond.claims.';
    end if;
    return null;
  end if;

  select claim_number
  into v_number
  from claims
  where coupon_name = old.name
  order by claim_number desc
  limit 1;

  if tg_op = 'UPDATE'
    and new.amount - new.remaining_amount <> old.amount - old.remaining_amount
    and new.amount - new.remaining_amount <> coalesce(v_number, 0)
  then
    raise exception using
      errcode = 'check_violation',
      message = format('the coupon %L has %s claims', old.name, coalesce(v_number, 0)),
      detail = format('So its remaining_amount cannot be %s if its amount is %s.', new.remaining_amount, new.amount);
  end if;

  if v_number is null then
    return null;
  end if;

  if tg_op = 'DELETE' or old.name <> new.name then
    raise exception using
      errcode = 'foreign_key_violation',
      message = format('the coupon %L has claims', old.name);
  end if;

  if new.amount < v_number then
    raise exception using
      errcode = 'check_violation',
      message = format('the coupon %L has %s claims', old.name, v_number),
      detail = format('Its amount cannot be %s.', new.amount);
  end if;
  return null;
end;
$$;

comment on function coupond.protect_coupons() is
  'Trigger function of coupons. Raises 23503 (foreign_key_violation) when a coupon that has claims would be deleted or '
  'renamed, and 23514 (check_violation) when a name is not valid, or when an amount would be below the claims, or would '
  'change and not be remaining_amount plus the claims. Needs READ COMMITTED.';
