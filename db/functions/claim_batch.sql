-- The claim, for a crowd that wants many coupons: the rule of claim_coupons, said once more as one statement over sets. A
-- loop over claim_coupons takes one call a coupon; this takes one lock statement and one claim statement for all.
create or replace function public.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
returns table ("position" integer, status public.claim_status)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- Plans are made once a session and kept (see claim_coupons): look-ups in the tables are laterals, which can only be index
-- probes in a nested loop; all other joins are between the arrays of one call, where a nested loop would be quadratic.
-- Switching methods off adds to a plan's cost, which must not be mistaken for work worth compiling.
set enable_seqscan = off
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_wanted text[];
  v_coupons text[];
  v_amounts integer[];
  v_remaining integer[];
begin
  perform public.guard_names('p_coupons', p_coupons);
  perform public.guard_names('p_users', p_users);

  if p_positions is null or array_position(p_positions, null) is not null or array_ndims(p_positions) > 1 then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_positions must be an array of one dimension without nulls';
  end if;
  if cardinality(p_coupons) <> cardinality(p_users) or cardinality(p_positions) <> cardinality(p_users) then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_users, p_coupons and p_positions must have the same length';
  end if;

  -- 1. Look, without a lock: which coupons are wanted by somebody who does not have them yet?
  v_wanted := array(
    select distinct w.coupon_name
    from unnest(p_users, p_coupons) as w (user_id, coupon_name)
    left join lateral (
      select true as found
      from public.claims as k
      where k.user_id = w.user_id
        and k.coupon_name = w.coupon_name
      limit 1
    ) as has on true
    where has.found is null
  );

  -- 2. Lock those of them that have stock, in byte order: the one order in which everybody takes several of these locks,
  --    so that no two crowds can wait for each other. The stock read with the lock is the newest there is.
  select array_agg(l.name), array_agg(l.amount), array_agg(l.remaining_amount)
  into v_coupons, v_amounts, v_remaining
  from (
    select c.name, c.amount, c.remaining_amount
    from public.coupons as c
    where c.name = any (v_wanted)
      and c.remaining_amount > 0
    order by c.name
    for no key update
  ) as l;

  -- 3. Claim, for all of them at once. Stock is that of the locked coupons only: a coupon that this statement sees and
  --    the first did not was created in between, and for this call there is no such coupon.
  return query
  with asked as (
    select
      w.place,
      w.position,
      w.user_id,
      w.coupon_name,
      s.amount,
      s.remaining_amount,
      has.found as has_claim,
      row_number() over (partition by w.coupon_name, w.user_id order by w.place) as turn
    from unnest(p_users, p_coupons, p_positions) with ordinality as w (user_id, coupon_name, position, place)
    left join unnest(v_coupons, v_amounts, v_remaining) as s (name, amount, remaining_amount)
      on s.name = w.coupon_name
    left join lateral (
      select true as found
      from public.claims as k
      where k.user_id = w.user_id
        and k.coupon_name = w.coupon_name
      limit 1
    ) as has on true
  ),
  ranked as (
    -- A user who is new to a coupon, with his first request for it, takes the next piece of its stock.
    select
      a.*,
      count(*) filter (where a.has_claim is null and a.turn = 1)
        over (partition by a.coupon_name order by a.place) as rank
    from asked as a
  ),
  granted as (
    insert into public.claims (coupon_name, claim_number, user_id)
    select r.coupon_name, r.amount - r.remaining_amount + r.rank, r.user_id
    from ranked as r
    where r.has_claim is null
      and r.turn = 1
      and r.rank <= r.remaining_amount
    order by r.coupon_name, r.place
    returning coupon_name
  ),
  decremented as (
    update public.coupons as c
    set remaining_amount = c.remaining_amount - g.claimed
    from (
      select coupon_name, count(*) as claimed
      from granted
      group by coupon_name
    ) as g
    where c.name = g.coupon_name
      and c.name = any (v_coupons)
  )
  select
    r.position,
    case
      when r.has_claim then 'already_claimed'
      when r.turn = 1 and r.rank <= r.remaining_amount then 'claimed'
      when r.turn > 1 and first_value(r.rank) over first_turn <= r.remaining_amount then 'already_claimed'
      when r.remaining_amount is not null then 'out_of_stock'
      when unlocked.remaining_amount = 0 then 'out_of_stock'
      else 'coupon_not_found'
    end::public.claim_status
  from ranked as r
  left join lateral (
    select c.remaining_amount
    from public.coupons as c
    where c.name = r.coupon_name
      and r.remaining_amount is null
    limit 1
  ) as unlocked on true
  window first_turn as (partition by r.coupon_name, r.user_id order by r.turn)
  order by r.place;
end;
$$;

comment on function public.claim_batch(text[], text[], integer[]) is
  'claim_coupons for a crowd that wants many coupons: user p_users[i] claims p_coupons[i]. Answers one row per claim, in the order of the arrays, under the position that p_positions[i] gives it (so that a proxy may split the arrays and join the rows). Coupons are locked in byte order; all claims commit together.';

revoke all on function public.claim_batch(text[], text[], integer[]) from public;
grant execute on function public.claim_batch(text[], text[], integer[]) to coupon_service;
