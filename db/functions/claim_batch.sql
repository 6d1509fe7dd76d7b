-- Claims many coupons in one call: the rule of claim_coupons over sets of coupons. It takes three
-- statements in all, where one call of claim_coupons per coupon would take five each.
create or replace function coupond.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
returns table ("position" integer, status coupond.claim_status)
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
-- The settings of claim_coupons, for the same reasons (ADR 0010).
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_wanted text[] collate "C";
  v_coupons text[] collate "C";
  v_amounts integer[];
  v_remaining integer[];
begin
  perform check_names('p_coupons', p_coupons);
  perform check_names('p_users', p_users);

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

  perform check_shards(p_coupons);

  -- 1. Look, without a lock: coupons that at least one of the users requests and does not have.
  v_wanted := array(
    select distinct r.coupon_name collate "C"
    from unnest(p_users, p_coupons) as r (user_id, coupon_name)
    where not exists (select from find_claim(r.coupon_name, r.user_id))
  );

  -- 2. Lock those of them that have stock, in byte order. Every transaction that takes several of
  --    these locks uses this order, so batches cannot deadlock. Stock read with the lock is the
  --    newest.
  select array_agg(l.name), array_agg(l.amount), array_agg(l.remaining_amount)
  into v_coupons, v_amounts, v_remaining
  from (
    select c.name, c.amount::integer, c.remaining_amount
    from coupons as c
    where c.name = any (v_wanted)
      and c.remaining_amount > 0
    order by c.name
    for no key update
  ) as l;

  -- 3. Insert and decrement, for all coupons at once. Only locked coupons have stock here: a coupon
  --    that this statement sees and the first did not was created in between, and this call treats
  --    it as not found.
  return query
  with requests as (
    select
      r.ord,
      r.position,
      r.user_id collate "C" as user_id,
      r.coupon_name collate "C" as coupon_name,
      s.amount,
      s.remaining_amount,
      exists (select from find_claim(r.coupon_name, r.user_id)) as has_claim
    from unnest(p_users, p_coupons, p_positions) with ordinality as r (user_id, coupon_name, position, ord)
    left join unnest(v_coupons, v_amounts, v_remaining) as s (name, amount, remaining_amount)
      on s.name = r.coupon_name collate "C"
  ),
  candidates as (
    -- One row per user and coupon, at the position of the user's first request.
    select
      r.user_id,
      r.coupon_name,
      r.amount,
      r.remaining_amount,
      min(r.ord) as ord
    from requests as r
    where not r.has_claim
      and r.remaining_amount is not null
    group by
      r.user_id,
      r.coupon_name,
      r.amount,
      r.remaining_amount
  ),
  ranked as (
    select
      n.*,
      row_number() over (partition by n.coupon_name order by n.ord) as rank
    from candidates as n
  ),
  winners as (
    select *
    from ranked as n
    where n.rank <= n.remaining_amount
  ),
  inserted as (
    insert into claims (coupon_name, claim_number, user_id)
    select w.coupon_name, w.amount - w.remaining_amount + w.rank, w.user_id
    from winners as w
  ),
  decremented as (
    update coupons as c
    set remaining_amount = c.remaining_amount - n.claimed
    from (
      select w.coupon_name, count(*) as claimed
      from winners as w
      group by w.coupon_name
    ) as n
    where c.name = n.coupon_name
      and c.name = any (v_coupons)
  )
  select
    r.position,
    case
      when r.has_claim then 'already_claimed'
      when r.ord = w.ord then 'claimed'
      when w.ord is not null then 'already_claimed'
      when r.remaining_amount is not null then 'out_of_stock'
      when (
        select c.remaining_amount = 0
        from coupons as c
        where c.name = r.coupon_name
        limit 1
      ) then 'out_of_stock'
      else 'coupon_not_found'
    end::claim_status
  from requests as r
  left join winners as w
    on w.coupon_name = r.coupon_name
    and w.user_id = r.user_id
  order by r.ord;
end;
$$;

comment on function coupond.claim_batch(text[], text[], integer[]) is
  'claim_coupons for many coupons: p_users[i] claims p_coupons[i]. Returns one row per claim, in the order '
  'of the arrays, with its position p_positions[i], so that a proxy can split the arrays and join the '
  'rows. Coupons are locked in byte order; all claims commit together.';
