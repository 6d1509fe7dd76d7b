-- Claims a coupon for a batch of users: one look, one lock, one insert, one decrement, one commit.
create or replace function public.claim_coupons(p_users text[], p_coupon text)
returns public.claim_status[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- A session caches its plans, and a plan made while the tables were small must still probe an index
-- when they hold millions of claims (ADR 0010). So the lookup of a user's claim is always a
-- subquery with a limit, which the planner cannot turn into a join that reads all claims of the
-- coupon; and it selects the user as a range, in order. Only the unique index (coupon_name,
-- user_id) has that order, and sorting is disabled. With two equalities, the planner may choose the
-- primary key instead and read all claims of the coupon.
set enable_seqscan = off
set enable_sort = off
-- Joins are between arrays of one call, where a nested loop would be quadratic.
set enable_nestloop = off
-- A disabled method adds to a plan's estimated cost, which must not trigger JIT compilation.
set jit = off
as $$
declare
  v_statuses public.claim_status[];
  v_amount integer;
  v_remaining integer;
  v_claimed bigint;
begin
  perform public.guard_name('p_coupon', p_coupon);
  perform public.guard_names('p_users', p_users);
  if exists (select from public.shard) then
    perform public.guard_ownership(p_coupon);
  end if;

  -- 1. Look, without a lock. A missing coupon, an empty stock and an existing claim are true
  --    answers at this moment; the last two stay true, because stock never grows and claims are
  --    never deleted.
  select c.remaining_amount
  into v_remaining
  from public.coupons as c
  where c.name = p_coupon;

  if not found then
    return array_fill('coupon_not_found'::public.claim_status, array[cardinality(p_users)]);
  end if;

  -- 2. Lock, if any claim may succeed. The lock is the one that the update below takes, so it does
  --    not block the key share locks of foreign keys. Stock is read again, because other
  --    transactions may have decremented it while this one waited.
  if v_remaining > 0 and exists (
    select
    from unnest(p_users) as u (id)
    where (
      select true
      from public.claims as k
      where k.coupon_name = p_coupon
        and k.user_id between u.id and u.id
      order by k.user_id
      limit 1
    ) is null
  ) then
    select c.amount, c.remaining_amount
    into v_amount, v_remaining
    from public.coupons as c
    where c.name = p_coupon
    for no key update;

    -- Only the owner can delete a coupon, by hand and before its first claim.
    if not found then
      return array_fill('coupon_not_found'::public.claim_status, array[cardinality(p_users)]);
    end if;

    -- 3. Insert all claims at once, in the order of the batch, while stock lasts. With the lock
    --    held, no other transaction claims this coupon: existing claims are final, and the next
    --    claim numbers are free. One insert per user, in a loop, is slower in batches (ADR 0009).
    with requests as materialized (
      select
        u.id,
        u.ord,
        (
          select true
          from public.claims as k
          where k.coupon_name = p_coupon
            and k.user_id between u.id and u.id
          order by k.user_id
          limit 1
        ) as has_claim
      from unnest(p_users) with ordinality as u (id, ord)
    ),
    winners as materialized (
      -- One row per user, at the position of the user's first request.
      select r.id, min(r.ord) as ord
      from requests as r
      where r.has_claim is null
      group by r.id
      order by min(r.ord)
      limit v_remaining
    ),
    inserted as (
      insert into public.claims (coupon_name, claim_number, user_id)
      select p_coupon, v_amount - v_remaining + row_number() over (order by w.ord), w.id
      from winners as w
    )
    select
      array_agg(
        case
          when r.has_claim then 'already_claimed'
          when r.ord = w.ord then 'claimed'
          when w.ord is not null then 'already_claimed'
          else 'out_of_stock'
        end::public.claim_status
        order by r.ord
      ),
      count(*) filter (where r.ord = w.ord)
    into v_statuses, v_claimed
    from requests as r
    left join winners as w
      on w.id = r.id;

    -- 4. Decrement once per call: each update leaves a dead version of the row, which every later
    --    lookup in the same transaction has to skip.
    if v_claimed > 0 then
      update public.coupons as c
      set remaining_amount = c.remaining_amount - v_claimed
      where c.name = p_coupon;
    end if;

    return v_statuses;
  end if;

  -- 5. No claim can succeed: already_claimed for users that have the coupon, else out_of_stock.
  return array(
    select
      case
        when (
          select true
          from public.claims as k
          where k.coupon_name = p_coupon
            and k.user_id between u.id and u.id
          order by k.user_id
          limit 1
        ) then 'already_claimed'
        else 'out_of_stock'
      end::public.claim_status
    from unnest(p_users) with ordinality as u (id, ord)
    order by u.ord
  );
end;
$$;

comment on function public.claim_coupons(text[], text) is
  'Claims p_coupon for each of p_users, in their order, in one transaction. Returns one status per user, '
  'in the same order; a repeated user gets already_claimed. Precedence: coupon_not_found, '
  'already_claimed, out_of_stock. Rejections take no lock.';

revoke all on function public.claim_coupons(text[], text) from public;
grant execute on function public.claim_coupons(text[], text) to coupon_service;
