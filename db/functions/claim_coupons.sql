-- Claims a coupon for a batch of users: claim_coupon over an array. One look, one lock, one insert,
-- one decrement, one commit.
create or replace function coupond.claim_coupons(p_users text[], p_coupon text)
returns coupond.claim_status[]
language plpgsql
security definer
set search_path = pg_catalog, coupond, pg_temp
-- A session plans each statement once, and that plan must still probe indexes when the tables hold
-- millions of claims (ADR 0010).
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off
-- Joins are between arrays of one call, where a nested loop would be quadratic.
set enable_nestloop = off
-- A disabled method adds to a plan's estimated cost, which must not trigger JIT compilation.
set jit = off
as $$
declare
  v_statuses claim_status[];
  v_amount integer;
  v_remaining integer;
  v_claimed bigint;
begin
  perform check_name('p_coupon', p_coupon);
  perform check_names('p_users', p_users);
  perform check_shard(p_coupon);

  -- 1. Look, without a lock. A missing coupon, an empty stock and an existing claim are true
  --    answers at this moment; the last two stay true, because stock never grows and claims are
  --    never deleted.
  select remaining_amount
  into v_remaining
  from coupons
  where name = p_coupon collate "C";

  if not found then
    return array_fill('coupon_not_found'::claim_status, array[cardinality(p_users)]);
  end if;

  -- 2. Lock, if any claim may succeed. The lock is the one that the update below takes. Stock is
  --    read again, because other transactions may have decremented it while this one waited.
  if v_remaining > 0 and exists (
    select
    from unnest(p_users) as u (id)
    where not exists (select from find_claim(p_coupon, u.id))
  ) then
    select amount, remaining_amount
    into v_amount, v_remaining
    from coupons
    where name = p_coupon collate "C"
    for no key update;

    -- Only the owner can delete a coupon, by hand and before its first claim.
    if not found then
      return array_fill('coupon_not_found'::claim_status, array[cardinality(p_users)]);
    end if;

    -- 3. Insert all claims at once, in the order of the batch, while stock lasts. With the lock
    --    held, no other transaction claims this coupon: existing claims are final, and the next
    --    claim numbers are free. One insert per user, in a loop, is slower in batches (ADR 0009).
    with requests as materialized (
      select
        u.id collate "C" as id,
        u.ord,
        exists (select from find_claim(p_coupon, u.id)) as has_claim
      from unnest(p_users) with ordinality as u (id, ord)
    ),
    winners as materialized (
      -- One row per user, at the position of the user's first request.
      select r.id, min(r.ord) as ord
      from requests as r
      where not r.has_claim
      group by r.id
      order by min(r.ord)
      limit v_remaining
    ),
    inserted as (
      insert into claims (coupon_name, claim_number, user_id)
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
        end::claim_status
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
      update coupons
      set remaining_amount = remaining_amount - v_claimed
      where name = p_coupon collate "C";
    end if;

    return v_statuses;
  end if;

  -- 5. No claim can succeed: already_claimed for users that have the coupon, else out_of_stock.
  return array(
    select
      case
        when exists (select from find_claim(p_coupon, u.id)) then 'already_claimed'
        else 'out_of_stock'
      end::claim_status
    from unnest(p_users) with ordinality as u (id, ord)
    order by u.ord
  );
end;
$$;

comment on function coupond.claim_coupons(text[], text) is
  'Claims p_coupon for each of p_users, in their order, in one transaction. Returns one status per user, '
  'in the same order; a repeated user gets already_claimed. Precedence: coupon_not_found, '
  'already_claimed, out_of_stock. Rejections take no lock.';
