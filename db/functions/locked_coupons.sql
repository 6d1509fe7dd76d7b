-- Which of these coupons a claim would wait for: those with stock that another transaction keeps
-- locked. The service asks after it has waited for a lock in vain, to go on with the other coupons
-- (ADR 0019).
create or replace function coupond.locked_coupons(p_coupons text[])
returns setof text
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
-- As in claim_coupon (ADR 0010).
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
  v_locked text[];
begin
  perform check_names('p_coupons', p_coupons);
  perform check_shards(p_coupons);

  -- Only a transaction that locks a row can tell whether it is locked. Claims would wait for these
  -- locks during the commit, and other calls would report them. So the block ends with an error,
  -- which rolls it back and releases them at once.
  begin
    with free as materialized (
      select c.name
      from coupons as c
      where c.name = any (p_coupons collate "C")
        and c.remaining_amount > 0
      for no key update skip locked
    )
    select array_agg(c.name)
    into v_locked
    from coupons as c
    where c.name = any (p_coupons collate "C")
      and c.remaining_amount > 0
      and c.name not in (select f.name from free as f);

    raise exception 'release the locks';
  exception
    when raise_exception then
      return query select unnest(v_locked);
  end;
end;
$$;

comment on function coupond.locked_coupons(text[]) is
  'Those of p_coupons that have stock and are locked by another transaction, in no order: claims of them wait for '
  'it. Waits for no row lock and keeps none. A coupon that does not exist is not locked.';
