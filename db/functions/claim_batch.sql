-- The claim, for a crowd that wants many coupons: the rule of claim_coupons said once more, over sets of coupons. Three
-- statements for all of it, where a call of claim_coupons for each coupon would take five each.
create or replace function public.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
returns table ("position" integer, status public.claim_status)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- Plans are kept. Look-ups in the tables are subqueries with a limit, which can only be index probes (see claim_coupons); the
-- joins are between the arrays of one call, where a nested loop would be quadratic. Switching a method off adds to a plan's
-- cost, which must not be mistaken for work worth compiling.
set enable_seqscan = off
set enable_sort = off
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

  if p_positions is null or array_ndims(p_positions) > 1 or array_position(p_positions, null) is not null then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_positions must be an array of one dimension without nulls';
  end if;
  if cardinality(p_coupons) <> cardinality(p_users) or cardinality(p_positions) <> cardinality(p_users) then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'p_users, p_coupons and p_positions must have the same length';
  end if;
  if exists (select from public.shard) then
    perform public.guard_ownership(variadic p_coupons);
  end if;

  -- 1. Look, without a lock: which coupons are wanted by somebody who does not have them yet?
  v_wanted := array(
    select distinct w.coupon_name
    from unnest(p_users, p_coupons) as w (user_id, coupon_name)
    where (
      select true
      from public.claims as k
      where k.coupon_name = w.coupon_name
        and k.user_id between w.user_id and w.user_id
      order by k.user_id
      limit 1
    ) is null
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
      (
        select true
        from public.claims as k
        where k.coupon_name = w.coupon_name
          and k.user_id between w.user_id and w.user_id
        order by k.user_id
        limit 1
      ) as has_claim
    from unnest(p_users, p_coupons, p_positions) with ordinality as w (user_id, coupon_name, position, place)
    left join unnest(v_coupons, v_amounts, v_remaining) as s (name, amount, remaining_amount)
      on s.name = w.coupon_name
  ),
  newcomers as (
    -- One for each user and coupon, however often the user asks, in the place of his first request.
    select
      a.user_id,
      a.coupon_name,
      a.amount,
      a.remaining_amount,
      min(a.place) as place
    from asked as a
    where a.has_claim is null
      and a.remaining_amount is not null
    group by
      a.user_id,
      a.coupon_name,
      a.amount,
      a.remaining_amount
  ),
  ranked as (
    select
      n.*,
      row_number() over (partition by n.coupon_name order by n.place) as rank
    from newcomers as n
  ),
  winners as (
    select *
    from ranked as r
    where r.rank <= r.remaining_amount
  ),
  granted as (
    insert into public.claims (coupon_name, claim_number, user_id)
    select w.coupon_name, w.amount - w.remaining_amount + w.rank, w.user_id
    from winners as w
  ),
  decremented as (
    update public.coupons as c
    set remaining_amount = c.remaining_amount - g.claimed
    from (
      select w.coupon_name, count(*) as claimed
      from winners as w
      group by w.coupon_name
    ) as g
    where c.name = g.coupon_name
      and c.name = any (v_coupons)
  )
  select
    a.position,
    case
      when a.has_claim then 'already_claimed'
      when a.place = w.place then 'claimed'
      when w.place is not null then 'already_claimed'
      when a.remaining_amount is not null then 'out_of_stock'
      when (
        select c.remaining_amount = 0
        from public.coupons as c
        where c.name = a.coupon_name
        limit 1
      ) then 'out_of_stock'
      else 'coupon_not_found'
    end::public.claim_status
  from asked as a
  left join winners as w
    on w.coupon_name = a.coupon_name
    and w.user_id = a.user_id
  order by a.place;
end;
$$;

comment on function public.claim_batch(text[], text[], integer[]) is
  'claim_coupons for a crowd that wants many coupons: user p_users[i] claims p_coupons[i]. Answers one row per claim, in the order of the arrays, under the position that p_positions[i] gives it (so that a proxy may split the arrays and join the rows). Coupons are locked in byte order; all claims commit together.';

revoke all on function public.claim_batch(text[], text[], integer[]) from public;
grant execute on function public.claim_batch(text[], text[], integer[]) to coupon_service;
